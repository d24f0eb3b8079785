"""What the host does in training steps on a GPU: it waits for nothing, and launches what it has captured before.

In the emulation, which counts.
"""

import numpy as np
import pytest
from tiny_bert import V
from training_steps import Steps, batches

from lucid import backend, kernels
from lucid.backend import page_locked, to_device
from lucid.distributed import connect
from lucid.errors import ConfigError, TrainingError
from lucid.gpu_async import HostCopy
from lucid.kernels import reference
from lucid.kernels.cuda import algorithms
from lucid.training.evaluation import evaluate
from lucid.training.graphs import rounded_up
from lucid.training.held_out import HeldOut

STEPS = 5


@pytest.fixture
def steps():
    return Steps(connect("single", "cuda"))


@pytest.mark.emulated
def test_the_host_waits_for_nothing_once_graphs_are_captured(steps, device_counts):
    warm_up, measured = np.split(np.array(list(batches(1, STEPS, 4)), object), [2])
    on_their_way = [steps.take(batch) for batch in warm_up]
    before = device_counts.host_waits
    on_their_way += [steps.take(batch) for batch in measured]
    # Events of copies that are long over: the pinned memory of the micro-batch before the last is written again.
    assert device_counts.host_waits - before <= 2 * len(measured)
    for readback in on_their_way:
        readback.synchronize()
        assert np.isfinite(readback.values).all()


@pytest.mark.emulated
def test_a_captured_micro_batch_is_launched_as_one_graph(steps, device_counts):
    first, second, *others = batches(2, STEPS, 4)
    steps.take(first)
    steps.take(second)
    launches, graphs = device_counts.kernel_launches, device_counts.graph_launches
    for batch in others:
        steps.take(batch)
    # Norm, clipping and update are launched one by one: two kernels each for weights with and without decay, and more.
    assert device_counts.kernel_launches - launches <= 13 * len(others)
    # A piece ends with each bucket of gradients, of which there is one here.
    assert device_counts.graph_launches - graphs == 2 * 3 * len(others) - 2 * len(others)


@pytest.mark.emulated
@pytest.mark.parametrize("micro_batch", [None, 2, 3])
def test_products_are_planned_and_timed_before_anything_is_captured(monkeypatch, micro_batch):
    """A stream that captures could not be waited for."""
    import cupy

    chosen, met = algorithms.chosen, []

    def seen(card, product, seconds):
        met.append(cupy.cuda.get_current_stream().is_capturing())
        return chosen(card, product, seconds)

    monkeypatch.setattr(algorithms, "chosen", seen)
    steps = Steps(connect("single", "cuda"), micro_batch=micro_batch)
    for batch in batches(6, STEPS, 4):
        steps.take(batch)
    assert met
    assert not any(met)


@pytest.mark.emulated
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_products_are_timed_before_any_gradient_is_on_its_way_to_other_ranks(monkeypatch, micro_batch):
    """A sum over ranks keeps the GPU busy until the others come."""
    done, seconds_of = [], algorithms.seconds_of
    steps = Steps(connect("single", "cuda"), micro_batch=micro_batch, bucket_megabytes=0.001)
    partition = steps.ddp.partition
    summed = partition.sum

    def seen(works):
        done.append("timed")
        return seconds_of(works)

    def sum_bucket(bucket):
        done.append(bucket)
        return summed(bucket)

    monkeypatch.setattr(algorithms, "seconds_of", seen)
    monkeypatch.setattr(partition, "sum", sum_bucket)
    first, second, third = batches(8, 3, 4)
    steps.take(first).synchronize()
    buckets = list(range(len(partition.buckets)))
    assert len(buckets) > 4
    timed = done[: -len(buckets)]
    assert len(timed) > 10
    assert set(timed) == {"timed"}
    assert done[-len(buckets) :] == buckets
    done.clear()
    steps.take(second).synchronize()
    steps.take(third).synchronize()
    assert done == 2 * buckets


class Samples:
    """Samples of one batch, as of a sampler."""

    def __init__(self, batch):
        self.whole, self.samples_per_epoch = batch, len(batch.samples)

    def batch(self, epoch, rows):
        return self.whole.slice(rows.start, rows.stop)


@pytest.mark.emulated
def test_evaluations_between_steps_time_nothing_and_keep_nothing(steps, choices, monkeypatch):
    """Their batches are not filled up to a few sizes."""
    for batch in batches(9, 2, 4):
        steps.take(batch).synchronize()
    kept, used = [path.read_bytes() for path in choices.iterdir()], algorithms.used()
    assert used

    def unwanted(*arguments):
        raise AssertionError("nothing is chosen here")

    monkeypatch.setattr(algorithms, "chosen", unwanted)
    [batch] = batches(10, 1, 3)
    held_out = HeldOut("corpus", 1.0, Samples(batch), None, np.zeros(V), "")
    found = evaluate(
        steps.ddp.module, [held_out], steps.communicator, samples=3, batch_size=2, bigram_loss=lambda *_: 0.0
    )
    assert found.together.masked_tokens > 0
    assert algorithms.used() == used
    assert [path.read_bytes() for path in choices.iterdir()] == kept


@pytest.mark.emulated
def test_every_wait_for_the_gpu_is_one_that_the_watchdog_sees(steps, device_counts, monkeypatch):
    """Were a rank missing in a collective, the host would wait there: outside of these it would look busy."""
    noted = []
    status = steps.micro_batches._communicator.status
    waiting = status.waiting

    def note(what, size, **options):
        noted.append(what)
        return waiting(what, size, **options)

    monkeypatch.setattr(status, "waiting", note)
    warm_up, *measured = batches(4, STEPS, 4)
    steps.take(warm_up)
    before = device_counts.host_waits
    noted.clear()
    for batch in measured:
        steps.take(batch)
    assert noted == ["wait for the GPU"] * 2 * len(measured)
    assert device_counts.host_waits - before <= len(noted)


@pytest.mark.emulated
def test_a_thread_keeps_its_stream_whatever_blocks_it_passes_through():
    """CuPy copies an array that is not contiguous in a block of its own, and forgets what only `use` made current."""
    import cupy

    device = connect("single", "cuda").device
    stream = cupy.cuda.get_current_stream()
    assert stream.ptr != 0
    to_device(np.ones((3, 4), np.float32), device).T.get()
    assert cupy.cuda.get_current_stream() == stream
    with cupy.cuda.Stream(non_blocking=True):
        pass
    assert cupy.cuda.get_current_stream() == stream


@pytest.mark.emulated
def test_what_is_read_back_for_nobody_is_written_to_nobodys_memory():
    """CuPy hands page-locked memory out again at once, though a copy to it may be on its way."""
    device = connect("single", "cuda").device
    HostCopy(to_device(np.full(1000, 7.0), device))
    mine = page_locked(8000)
    mine[...] = 1
    backend.synchronise()
    assert (mine == 1).all()


@pytest.mark.emulated
def test_a_gpu_without_room_is_told_in_a_sentence():
    with pytest.raises(TrainingError, match=r"no room for what a micro-batch computes: 212.50 GiB more are needed"):
        Steps(connect("single", "cuda"), activation_bytes=200 * 2**30)


@pytest.mark.emulated
def test_the_reference_does_not_train_on_a_gpu(monkeypatch):
    monkeypatch.setattr(kernels, "_on_gpu", lambda: reference)
    with pytest.raises(ConfigError, match="the reference kernels do not train on a GPU: unset LUCID_KERNELS"):
        kernels.check_gpu_kernels()


def test_shapes_are_filled_up_to_a_few():
    batch, length = 256, 128
    found = {
        rounded_up((rows, labelled, batch), batch, length)
        for rows in range(30_000, batch * length + 1, 37)
        for labelled in (rows * 15 // 100, rows * 16 // 100)
    }
    assert len(found) < 20
    for rows, labelled, sequences in found:
        assert rows % 64 == 0
        assert rows <= batch * length
        assert sequences == batch + -(-batch * length // 32 // length)
        assert labelled >= rows * 14 // 100


def pool_of(steps):
    return steps.micro_batches._pool._pool


@pytest.mark.emulated
def test_micro_batches_of_rising_sizes_take_no_more_memory_than_was_taken_at_first():
    """Pieces that CuPy's pool takes one by one never join, so that each larger size would take one more."""
    steps = Steps(connect("single", "cuda"), rows=16, micro_batch=None, activation_bytes=2**22)
    taken = pool_of(steps).total_bytes()
    for rows in (4, 8, 12, 16, 16):
        for batch in batches(5, 2, rows):
            steps.own = 0, rows
            steps.take(batch).synchronize()
    assert pool_of(steps).total_bytes() == taken


@pytest.mark.emulated
def test_graphs_keep_their_memory_where_a_larger_micro_batch_finds_no_room(monkeypatch):
    """To CuPy's pool their memory is free between launches: the pool must not give it back to make room."""
    import cupy

    steps = Steps(connect("single", "cuda"), rows=16, micro_batch=None, activation_bytes=2**20)
    small = next(batches(5, 1, 4))
    steps.own = 0, 4
    for _ in range(2):
        steps.take(small)
    cupy.get_default_memory_pool().free_all_blocks()
    free, total = cupy.cuda.runtime.memGetInfo()
    monkeypatch.setenv("EMULATED_MEMORY", str(total - free))
    taken, no_room = pool_of(steps).total_bytes(), pytest.raises(TrainingError, match="no room for what a micro-batch")
    with no_room, steps.micro_batches._pool.allocating():
        cupy.empty(2**21, np.uint8)
    assert pool_of(steps).total_bytes() == taken
    figures = steps.take(small)
    figures.synchronize()
    assert np.isfinite(figures.values).all()
