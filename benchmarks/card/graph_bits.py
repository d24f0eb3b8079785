"""Are steps by CUDA graphs those of steps launched kernel by kernel? Norms and weights, bit for bit.

With one, two and three micro-batches a step, in float32 and bfloat16, with padding and with sequences packed into rows.
Started on several ranks, each of which has a GPU, it also shows whether NCCL and graphs get along.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np
from card.keeping import choices_of_its_own
from card.results import Results
from card.training_step import Training
from card.workloads import MODELS

import lucid
from lucid.data import Batch
from lucid.distributed import Communicator, connect
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.training.micro_batches import LocalBatch

# The first of a shape is launched kernel by kernel, the second is captured, all others are replayed.
STEPS, TINY_STEPS = 8, 4
# The widths of BERT-base, so that kernels and products are those of training, with few layers.
SETTINGS, ROWS, LENGTH = {"num_hidden_layers": 2}, 24, 128
TINY_SETTINGS, TINY_ROWS, TINY_LENGTH = {"num_hidden_layers": 1}, 3, 16


def check(results: Results, tiny: bool) -> bool:
    """Add a line for each combination, and return whether all gave the same bits."""
    communicator = connect("auto", "cuda")
    config = BERTConfig(**(MODELS["tiny"] | TINY_SETTINGS if tiny else SETTINGS))
    rows, length = (TINY_ROWS, TINY_LENGTH) if tiny else (ROWS, LENGTH)
    all_same = True
    for micro_batches, rounded, packed in product((1, 2, 3), (True, False), (False, True)):
        shape, count = (rows * communicator.size, length), TINY_STEPS if tiny else STEPS
        steps = list(batches(count, config.vocab_size, *shape, packed))
        with choices_of_its_own(tiny):
            (norms, weights), (other_norms, other_weights) = (
                train(config, communicator, steps, micro_batches, rounded, graphs) for graphs in (True, False)
            )
        different = np.flatnonzero(np.array(norms) != np.array(other_norms)).tolist()
        same = not different and bool((weights == other_weights).all()) and min(norms) > 0
        all_same = all_same and same
        if communicator.rank == 0:
            results.add(
                micro_batches=micro_batches,
                precision="bfloat16" if rounded else "float32",
                rows="packed" if packed else "padded",
                ranks=communicator.size,
                same=same,
                norms_differ_at=different,
                weights_that_differ=int((weights != other_weights).sum()),
                norms=norms,
                norms_one_by_one=other_norms,
            )
    return all_same


def train(
    config: BERTConfig, communicator: Communicator, steps: list[Batch], micro_batches: int, rounded: bool, graphs: bool
) -> tuple[list[float], np.ndarray]:
    """Return the gradients' norms of the steps, and the weights after them."""
    lucid.manual_seed(0)
    rows, length = steps[0].input_ids.shape
    share = rows // communicator.size
    most = -(-share // micro_batches)
    training = Training(BERTForPreTraining(config), communicator, (most, length, most * length), rounded, graphs)
    norms = []
    for batch in steps:
        own = batch.slice(communicator.rank * share, (communicator.rank + 1) * share)
        outcome = training.take(LocalBatch.split(own, most), batch.masked_tokens, len(batch.nsp_labels))
        outcome.synchronize()
        norms.append(float(outcome.values[-1]))
    return norms, training.ddp.flat.values.get()


def batches(count: int, vocabulary: int, rows: int, length: int, packed: bool) -> Iterator[Batch]:
    """Yield a batch for each step: rows of several lengths, or of several sequences. One has another shape."""
    generator = np.random.default_rng(0)
    slots, lengths = np.arange(length), length - np.arange(rows) % 4
    for step in range(count):
        inside = slots < lengths[:, None] - (length // 4 if step == count // 2 else 0)
        # Packed, a row has a first sequence of a third, or of half, of its tokens.
        first = np.where(np.arange(rows) % 2 == 0, length // 2, length // 3)[:, None]
        numbers = np.where(inside, np.where(packed & (slots >= first), 2, 1), 0)
        ids = generator.integers(5, vocabulary, (rows, length))
        masked = inside & (slots % 7 == step % 7)
        yield Batch(
            input_ids=np.where(masked, 4, np.where(inside, ids, 0)).astype(np.int32),
            sequence_ids=numbers.astype(np.int32),
            token_type_ids=(inside & (slots % 2 == 1)).astype(np.int32),
            mlm_labels=np.where(masked, ids, -100).astype(np.int32),
            nsp_labels=generator.integers(0, 2, numbers.max(axis=1).sum()).astype(np.int32),
            samples=np.arange(rows),
        )
