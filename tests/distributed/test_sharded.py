"""The sharded optimizer: each rank updates only its shard, and every rank gets all weights."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest

import lucid
from lucid.backend import to_device, to_host
from lucid.distributed import DistributedDataParallel
from lucid.nn import Embedding, Linear, Module, parameters
from lucid.optim import LAMB, AdamW, global_norm, not_finite

WIDTH, VOCABULARY, SAMPLES = 24, 37, 12


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Divide even parameters of this size among ranks; some blocks are not full."""
    monkeypatch.setattr(parameters, "BLOCK", 100)


class Model(Module):
    """A tied embedding, biases, and weights of several blocks."""

    def __init__(self):
        super().__init__()
        self.embedding = Embedding(VOCABULARY, WIDTH, deviation=1.0)
        self.first = Linear(WIDTH, WIDTH, deviation=0.3)
        self.head = Linear(WIDTH, VOCABULARY)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.first(self.embedding(ids)).tanh())


class Trained:
    """A model on all ranks, and its optimizer."""

    def __init__(self, group, optimizer, **options):
        lucid.manual_seed(group.rank)
        self.group = group
        self.ddp = DistributedDataParallel(Model().to(group.device), group, **options)
        self.optimizer = optimizer(self.ddp.partition)

    def backward(self, step=0):
        ids = np.random.default_rng(step).integers(0, VOCABULARY, SAMPLES)
        local = np.array_split(ids, self.group.size)[self.group.rank]
        outputs = self.ddp(to_device(local, self.group.device))
        self.ddp.zero_grad()
        (outputs * outputs).sum().backward()
        return float(global_norm(self.ddp.partition))

    def steps(self, count):
        """Take steps, and return the norms of their gradients."""
        norms = []
        for step in range(count):
            norms.append(self.backward(step))
            self.optimizer.step(1e-2, gradient_scale=0.5)
        return norms

    def weights(self):
        return to_host(self.ddp.flat.values).copy()


OPTIMIZERS = pytest.mark.parametrize("optimizer", [AdamW, LAMB])
# Buckets of one parameter, of a few, and of all; and the exact reduction.
REDUCTIONS = pytest.mark.parametrize(
    "options",
    [{"bucket_megabytes": 1e-9}, {"bucket_megabytes": 0.004}, {}, {"exact_micro_batches": 1}],
    ids=["bucket-per-parameter", "few-buckets", "one-bucket", "exact"],
)


def skip_unless_exact(group, options):
    if "exact_micro_batches" in options and group.size & (group.size - 1):
        pytest.skip("not a power of two")


@OPTIMIZERS
@REDUCTIONS
def test_the_weights_are_those_of_the_unsharded_optimizer(group, optimizer, options):
    skip_unless_exact(group, options)
    whole, sharded = (Trained(group, optimizer, sharded=sharded, **options) for sharded in (False, True))
    assert sharded.weights().tobytes() == whole.weights().tobytes()
    norms = whole.steps(4), sharded.steps(4)
    if sums_are_the_same(group, options):
        assert norms[0] == norms[1]
        assert sharded.weights().tobytes() == whole.weights().tobytes()
    else:
        np.testing.assert_allclose(*norms, rtol=1e-6)
        np.testing.assert_allclose(sharded.weights(), whole.weights(), rtol=1e-4, atol=1e-5)


@OPTIMIZERS
@pytest.mark.parametrize("sharded", [False, True])
def test_a_measured_update_has_the_same_bits_and_gives_the_sums_of_all_blocks(group, optimizer, sharded):
    plain, measured = (Trained(group, optimizer, sharded=sharded) for _ in range(2))
    for step in range(2):
        for each in (plain, measured):
            each.backward(step)
        before = measured.weights()
        assert plain.optimizer.step(1e-2, 0.5) is None
        squares = to_host(measured.optimizer.step(1e-2, 0.5, measured=True))
    after = measured.weights()
    assert after.tobytes() == plain.weights().tobytes()
    blocks = list(pairwise(measured.ddp.flat.bounds.tolist()))
    assert len(blocks) > 6
    for number, array in enumerate((before - after, after)):
        expected = [(array[start:stop].astype(np.float64) ** 2).sum() for start, stop in blocks]
        np.testing.assert_allclose(squares[:, number], expected, rtol=1e-9)


@OPTIMIZERS
@pytest.mark.parametrize("sharded", [False, True])
def test_the_copy_in_bfloat16_follows_the_weights_on_every_rank(group, optimizer, sharded):
    trained = Trained(group, optimizer, sharded=sharded, bfloat16_copy=True)
    flat = trained.ddp.flat
    for step in range(2):
        gradients = np.random.default_rng(step).standard_normal(len(flat.gradients), np.float32)
        flat.gradients[:] = to_device(gradients, group.device)
        trained.optimizer.step(1e-2)
        expected = to_host(flat.values).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(to_host(flat.bfloat16_copy), expected)
        group.barrier()  # no rank updates what another compares


def sums_are_the_same(group, options):
    """Whether reduce-scatter and all-reduce give the same bits: MPI and NCCL may add in different orders."""
    shared = type(group).__name__ == "SharedMemoryCommunicator"
    return group.size <= 2 or shared or "exact_micro_batches" in options


def test_each_rank_keeps_only_the_moments_of_its_shard(group):
    sharded = Trained(group, AdamW, sharded=True)
    count = len(sharded.optimizer.first_moments)
    # Shards are equal up to a block.
    assert abs(count - len(sharded.ddp.flat.values) / group.size) <= 100
    assert group.all_reduce_scalar(count) == len(sharded.ddp.flat.values)


def test_every_block_belongs_to_one_rank(group):
    partition = Trained(group, AdamW, sharded=True, bucket_megabytes=0.004).ddp.partition
    owners = np.zeros(len(partition.flat.bounds) - 1)
    for part in partition.slices:
        owners[part.blocks] += 1
    group.all_reduce(owners).wait()
    np.testing.assert_array_equal(owners, np.ones_like(owners))


@OPTIMIZERS
def test_the_first_rank_gathers_the_moments_of_the_unsharded_optimizer(group, optimizer):
    whole, sharded = (Trained(group, optimizer, sharded=sharded) for sharded in (False, True))
    whole.steps(2)
    sharded.steps(2)
    expected, got = whole.optimizer.moments(), sharded.optimizer.moments()
    assert got.keys() == expected.keys()
    if group.rank == 0:
        for name, moments in expected.items():
            np.testing.assert_allclose(got[name], moments, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_moments_may_be_restored_sharded_or_not(group, before, after):
    source, target = (Trained(group, AdamW, sharded=sharded) for sharded in (before, after))
    source.steps(2)
    state = {name: array.copy() for name, array in source.optimizer.moments().items()}
    buffers = target.optimizer.lay_out(state.__getitem__) if group.rank == 0 else {}
    target.optimizer.restore(buffers, 2)
    assert target.optimizer.updates == 2
    restored = target.optimizer.moments()
    if group.rank == 0:
        for name, moments in state.items():
            np.testing.assert_array_equal(restored[name], moments)


def test_an_optimizer_that_is_given_parameters_updates_this_ranks_shard_of_them(group):
    by_partition, by_parameters = (Trained(group, AdamW, sharded=True) for _ in range(2))
    by_parameters.optimizer = AdamW(by_parameters.ddp.parameters(), lr=1e-2)
    assert by_parameters.optimizer.partition is by_parameters.ddp.partition
    by_partition.steps(2)
    by_parameters.steps(2)
    assert float(by_parameters.optimizer.gradient_norm()) == float(global_norm(by_partition.ddp.partition))
    for name, values in by_partition.ddp.module.state_dict().items():
        np.testing.assert_array_equal(by_parameters.ddp.module.state_dict()[name], values, err_msg=name)
    state = {name: array.copy() for name, array in by_parameters.optimizer.state_dict().items()}
    # All ranks load what the first has: the others' states are not whole.
    for array in state.values():
        group.broadcast(array)
    by_partition.optimizer.load_state_dict(state)
    restored = by_partition.optimizer.state_dict()
    assert (int(restored["updates"]), restored.keys()) == (2, state.keys())
    if group.rank == 0:
        for name, array in state.items():
            np.testing.assert_array_equal(restored[name], array, err_msg=name)


def test_kept_buffers_are_filled_again(group):
    sharded = Trained(group, AdamW, sharded=True)
    kept = {}
    for _ in range(2):
        sharded.steps(1)
        first = sharded.optimizer.moments(kept)["first_moment.first.weight"]
    if group.rank == 0:
        assert np.shares_memory(first, kept["first_moment"])
        np.testing.assert_array_equal(first, sharded_moment(sharded, group))
    else:
        sharded_moment(sharded, group)


def sharded_moment(sharded, group):
    return sharded.optimizer.moments()["first_moment.first.weight"]


def test_all_ranks_learn_of_a_gradient_that_is_not_finite_on_one(group):
    sharded = Trained(group, AdamW, sharded=True)
    sharded.backward()
    partition, flat = sharded.ddp.partition, sharded.ddp.flat
    part = partition.slices[0]
    named = next(segment for segment in flat.segments if segment.start <= part.elements.start < segment.stop).name
    if group.rank == group.size - 1:
        flat.gradients[part.elements.start] = np.inf
    assert not np.isfinite(global_norm(partition))
    assert len(not_finite(partition)) == 1
    assert (not_finite(partition) == [named]) or group.rank < group.size - 1


@pytest.mark.mpi(min_size=2)
def test_the_ranks_of_a_node_share_one_copy_of_the_weights(shared_memory):
    values = Trained(shared_memory, AdamW, sharded=True).ddp.flat.values
    shared_memory.barrier()
    if shared_memory.rank == shared_memory.size - 1:
        values[5] = 1234
    shared_memory.barrier()
    assert values[5] == 1234
