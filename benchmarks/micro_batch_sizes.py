"""Times forward and backward of one sequence in micro-batches of several sizes, on one thread of this CPU.

Sizes take turns, and the smallest processor time of the rounds counts, which other work on the machine changes least.
Sequences are full, 15% of their tokens are predicted, and there is no optimizer. The process keeps freed memory, as
`lucid launch` lets ranks do. `train.micro_batch: auto` rests on these times (docs/recipes.md).

    python benchmarks/micro_batch_sizes.py [--width 512] [--layers 8] [--length 128] [--sizes 4 8 16 32] [--rounds 3]
"""

import argparse
import os
import sys
import time

import numpy as np

from lucid.data import Batch
from lucid.distributed import DistributedDataParallel
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.kernels.masking import IGNORE_INDEX
from lucid.launch.mpirun import MEMORY_VARIABLES
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.training.micro_batches import LocalBatch, MicroBatches
from lucid.training.numerical_environment import limit_threads

VOCABULARY = 30522


def batch_of(size: int, length: int) -> Batch:
    """Return full sequences of random tokens in two segments."""
    random = np.random.default_rng(0)
    ids = random.integers(5, VOCABULARY, (size, length)).astype(np.int32)
    labels = np.where(random.random(ids.shape) < 0.15, ids, np.int32(IGNORE_INDEX))
    types = np.broadcast_to(np.arange(length, dtype=np.int32) // (length // 2 + 1), ids.shape)
    return Batch(ids, np.ones_like(ids), types, labels, np.zeros(size, np.int32), np.arange(size))


def seconds_of_sequences(options: argparse.Namespace) -> dict[int, float]:
    """Return the processor time that a sequence takes in micro-batches of each size."""
    config = BERTConfig(
        vocab_size=VOCABULARY,
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.width // 64),
        intermediate_size=4 * options.width,
        max_position_embeddings=max(512, options.length),
    )
    ddp = DistributedDataParallel(BERTForPreTraining(config), SingleCommunicator())
    micro_batches, best = MicroBatches(ddp, seed=0), dict.fromkeys(options.sizes, float("inf"))
    for turn in range(options.rounds + 1):
        for size in options.sizes:
            local_batch = LocalBatch.split(batch_of(size, options.length), size)
            began = time.process_time()
            micro_batches.gradients(local_batch, turn, 1e-3, 1e-3)
            seconds = (time.process_time() - began) / size
            if turn > 0:  # the first turn compiles products
                best[size] = min(best[size], seconds)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not MEMORY_VARIABLES.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | MEMORY_VARIABLES)
    limit_threads(1)
    best = seconds_of_sequences(options)
    fastest = min(best.values())
    for size, seconds in best.items():
        print(f"{size:5} x {options.length} tokens: {seconds * 1e3:8.2f} ms a sequence, {seconds / fastest:.2f}")


if __name__ == "__main__":
    main()
