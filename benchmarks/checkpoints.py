"""Times checkpoints of BERT-base that are written beside the training, on one process.

In turns: a step alone, then a checkpoint with steps beside it until it is on the disk. Printed are how long training
stalls, how long the checkpoint takes, the steps' seconds alone and beside, and the peak of the memory.

    OMP_NUM_THREADS=1 python benchmarks/checkpoints.py FOLDER [--length 64] [--batch 4] [--turns 4]
"""

import argparse
import resource
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

from made_up import make_batch

from lucid.models import BERTConfig, BERTForPreTraining
from lucid.nn import flatten
from lucid.optim import AdamW, OneProcess
from lucid.training.checkpoints.checkpoint import TrainingState
from lucid.training.checkpoints.saver import Saver
from lucid.training.checkpoints.store import CheckpointStore


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def state(step: int) -> TrainingState:
    return TrainingState(step, 0, step, 0, 0, (0.0,) * 6, "corpus", "tokenizer", {}, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where checkpoints are written, and removed at the end")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=4)
    arguments = parser.parse_args()

    config = BERTConfig()
    model = BERTForPreTraining(config)
    optimizer = AdamW(OneProcess(flatten(model)))
    batch = make_batch(config, arguments.batch, arguments.length)

    def train() -> None:
        optimizer.flat.zero_grad()
        model.get_loss(**batch).backward()
        optimizer.step(1e-4)

    train()
    folder = arguments.folder / "benchmark-checkpoints"
    saver = Saver(CheckpointStore(folder).claim(2, None), model, optimizer, [], saved_step=0, report=print)
    stalls, wholes, alone, beside = [], [], [], []
    print(f"peak memory without checkpoints: {peak_gigabytes():.2f} GB")
    try:
        for turn in range(1, arguments.turns + 1):
            alone.append(seconds(train))
            started = time.perf_counter()
            stalls.append(seconds(lambda turn=turn: saver.begin(state(turn))))
            while any(thread.name == "checkpoint" for thread in threading.enumerate()):
                beside.append(seconds(train))
            saver.wait()
            wholes.append(time.perf_counter() - started)
        last = seconds(lambda: saver.save(state(arguments.turns + 1), optimizer.moments()))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"stall, first: {stalls[0]:.2f} s; later: {', '.join(f'{stall:.2f}' for stall in stalls[1:])} s")
    print(f"on the disk after {', '.join(f'{whole:.1f}' for whole in wholes)} s beside steps, {last:.1f} s at the end")
    ratio = statistics.median(beside) / statistics.median(alone)
    print(f"a step alone {statistics.median(alone):.2f} s, beside {statistics.median(beside):.2f} s: {ratio:.2f}")
    print(f"peak memory with checkpoints: {peak_gigabytes():.2f} GB")


if __name__ == "__main__":
    main()
