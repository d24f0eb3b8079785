"""Graphs beside launches one by one, and beside the CPU: each number of micro-batches with each other setting.

How often a step's gradients are written, added to and summed over ranks follows from the number of micro-batches, who
sums them, and where a graph ends; none of these may go without the others.
"""

import itertools

import numpy as np
import pytest
from tiny_bert import IGNORED
from training_steps import Steps, batches

from lucid.backend import to_host
from lucid.distributed import connect
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.optim import LAMB, AdamW

STEPS = 8
# Samples of a rank, and of a micro-batch.
SHARE, MICRO_BATCHES = 6, {1: None, 2: 4, 3: 2}
# How far losses on a GPU may be from those of the CPU in float32.
WITHIN = {"float32": 1e-4, "bfloat16": 2e-2}

# In these each setting meets each of the others. All others are long tests.
PAIRWISE = {
    (1, "float32", "padded", "nccl"), (1, "bfloat16", "packed", "staged"),
    (2, "float32", "packed", "staged"), (2, "bfloat16", "padded", "nccl"),
    (3, "float32", "padded", "staged"), (3, "bfloat16", "packed", "nccl"),
}  # fmt: skip


def crossings(*settings):
    """Return all combinations of numbers of micro-batches, precisions, layouts, and what else there is."""
    short = {each[: 3 + len(settings)] for each in PAIRWISE}
    return [
        pytest.param(*each, marks=() if each in short else pytest.mark.long)
        for each in itertools.product(MICRO_BATCHES, WITHIN, ("padded", "packed"), *settings)
    ]


pytestmark = pytest.mark.emulated


def assert_all_agree(communicator, count, precision, layout, optimizer=AdamW, **settings):
    rows = SHARE * communicator.size
    settings |= {"rows": rows, "micro_batch": MICRO_BATCHES[count], "rounded": precision == "bfloat16"}
    replayed, launched = (Steps(communicator, graphs, optimizer=optimizer, **settings) for graphs in (True, False))
    on_cpu = Steps(SingleCommunicator(), rows=rows, micro_batch=None, optimizer=optimizer)
    for number, batch in enumerate(batches(3, STEPS, rows, packed=layout == "packed")):
        if number == 4:
            # Micro-batches without masked tokens are of another shape, which is launched after those that are replayed.
            batch.mlm_labels[rows // 2 :] = IGNORED
        taken = [steps.take(batch) for steps in (replayed, launched, on_cpu)]
        for readback in taken:
            readback.synchronize()
        figures, expected, of_cpu = (readback.values for readback in taken)
        np.testing.assert_array_equal(figures, expected)
        assert figures[-1] > 0, "the gradient's norm"
        np.testing.assert_array_equal(*(to_host(steps.ddp.flat.gradients) for steps in (replayed, launched)))
        np.testing.assert_allclose(replayed.loss(figures), on_cpu.loss(of_cpu), rtol=WITHIN[precision])
        np.testing.assert_allclose(figures[-1], of_cpu[-1], rtol=10 * WITHIN[precision])
    np.testing.assert_array_equal(*(to_host(steps.ddp.flat.values) for steps in (replayed, launched)))


@pytest.mark.parametrize(("count", "precision", "layout"), crossings())
def test_one_rank(count, precision, layout):
    assert_all_agree(connect("single", "cuda"), count, precision, layout)


@pytest.mark.parametrize("recompute", ["attention", "layer"])
@pytest.mark.parametrize(
    ("count", "precision", "layout"),
    [(2, "bfloat16", "packed"), pytest.param(1, "float32", "padded", marks=pytest.mark.long)],
)
def test_what_is_computed_again(count, precision, layout, recompute):
    assert_all_agree(connect("single", "cuda"), count, precision, layout, recompute=recompute)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("backend", ["nccl", "staged"])
@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.long)])
def test_lamb_on_shards(request, backend, count):
    communicator = request.getfixturevalue(backend)
    assert_all_agree(communicator, count, "bfloat16", "padded", optimizer=LAMB, sharded=True)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(("count", "precision", "layout", "backend"), crossings(("nccl", "staged")))
def test_several_ranks(request, count, precision, layout, backend):
    assert_all_agree(request.getfixturevalue(backend), count, precision, layout)
