"""What the host does in training steps on a GPU: it waits for nothing, and launches what it has captured before.

In the emulation, which counts.
"""

from dataclasses import replace

import numpy as np
import pytest
from tiny_bert import CONFIG, IGNORED, B, T, V

import lucid
from lucid import kernels
from lucid.backend import to_device
from lucid.data import Batch
from lucid.distributed import DistributedDataParallel, connect
from lucid.errors import ConfigError, TrainingError
from lucid.kernels import reference
from lucid.models import BERTForPreTraining
from lucid.optim import AdamW, clip_scale, global_norm
from lucid.streams import Readback
from lucid.training.graphs import GraphedMicroBatches, rounded_up
from lucid.training.micro_batches import share_of

STEPS = 5


def batches(seed, count):
    """Yield global batches of the same shape, as the sampler makes them."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        ids = generator.integers(1, V, (B, T))
        lengths = generator.permutation([T, T - 1, T - 3, T])[:B]
        inside = np.arange(T) < lengths[:, None]
        yield Batch(
            input_ids=np.where(inside, ids, 0).astype(np.int32),
            sequence_ids=inside.astype(np.int32),
            token_type_ids=generator.integers(0, 2, (B, T)).astype(np.int32),
            mlm_labels=np.where(inside & (np.arange(T) % 4 == 1), ids, IGNORED).astype(np.int32),
            nsp_labels=generator.integers(0, 2, B).astype(np.int32),
            samples=np.arange(B),
        )


class Steps:
    """Training steps in bfloat16: each of a rank's share of `rows` rows, in micro-batches of at most so many."""

    def __init__(self, graphs=True, communicator=None, rows=B, micro_batch=B // 2, activation_bytes=0):
        communicator = communicator or connect("single", "cuda")
        lucid.manual_seed(0)
        model = BERTForPreTraining(replace(CONFIG, num_hidden_layers=1)).to(communicator.device)
        self.ddp = DistributedDataParallel(model, communicator, rounded=True)
        self.optimizer = AdamW(self.ddp.flat)
        self.micro_batches = GraphedMicroBatches(self.ddp, 3, communicator, graphs, activation_bytes)
        self.taken = 0
        share = rows // communicator.size
        self.own, self.micro_batch = (communicator.rank * share, (communicator.rank + 1) * share), micro_batch

    def take(self, batch):
        """Take a step, and return its figures on their way."""
        share = share_of(self.ddp.module, batch.rows(*self.own), self.micro_batch)
        figures = self.micro_batches.gradients(share, self.taken, 0.1, 0.2)
        figures[-1] = norm = global_norm(self.ddp.flat)
        self.optimizer.step(1e-3, clip_scale(norm, 1.0))
        self.taken += 1
        return Readback(figures)


@pytest.fixture
def emulation():
    return pytest.importorskip("cupy").emulation


@pytest.mark.emulated
def test_the_host_waits_for_nothing_once_graphs_are_captured(emulation):
    steps = Steps()
    warm_up, measured = np.split(np.array(list(batches(1, STEPS)), object), [2])
    on_their_way = [steps.take(batch) for batch in warm_up]
    before = emulation.synchronisations
    on_their_way += [steps.take(batch) for batch in measured]
    # Events of copies that are long over: the pinned memory of the micro-batch before the last is written again.
    waits = [caller for caller in emulation.callers if "streams.py" not in caller]
    assert emulation.synchronisations - before <= 2 * len(measured), waits
    for readback in on_their_way:
        readback.synchronize()
        assert np.isfinite(readback.values).all()


@pytest.mark.emulated
def test_a_captured_micro_batch_is_launched_as_one_graph(emulation):
    steps = Steps()
    first, second, *others = batches(2, STEPS)
    steps.take(first)
    steps.take(second)
    launches, graphs = emulation.kernel_launches, emulation.graph_launches
    for batch in others:
        steps.take(batch)
    # Norm, clipping and update are launched one by one: two kernels each for weights with and without decay, and more.
    assert emulation.kernel_launches - launches <= 10 * len(others)
    # A piece ends with each bucket of gradients, of which there is one here.
    assert emulation.graph_launches - graphs == 2 * 3 * len(others) - 2 * len(others)


def assert_replays_give_the_bits_of_launches_one_by_one(**settings):
    """The first micro-batch of a shape is launched, the second captured, others are replayed."""
    one, other = Steps(graphs=True, **settings), Steps(graphs=False, **settings)
    for number, batch in enumerate(batches(3, 6)):
        if number == 4:
            # A micro-batch without masked tokens is of another shape: it is launched after one that is replayed.
            batch.mlm_labels[B // 2 :] = IGNORED
        readbacks = one.take(batch), other.take(batch)
        for readback in readbacks:
            readback.synchronize()
        replayed, launched = (readback.values for readback in readbacks)
        np.testing.assert_array_equal(replayed, launched)
        assert replayed[-1] > 0, "the gradient's norm"
        np.testing.assert_array_equal(one.ddp.flat.gradients.get(), other.ddp.flat.gradients.get())
    np.testing.assert_array_equal(one.ddp.flat.values.get(), other.ddp.flat.values.get())


@pytest.mark.emulated
@pytest.mark.parametrize(("rows", "micro_batch"), [(4, None), (4, 2), (3, 1), (4, 3)], ids=["1", "2", "3", "3 + 1"])
def test_replays_give_the_bits_of_launches_one_by_one(rows, micro_batch):
    assert_replays_give_the_bits_of_launches_one_by_one(rows=rows, micro_batch=micro_batch)


@pytest.mark.emulated
@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("backend", ["nccl", "staged"])
def test_replays_on_several_ranks_give_the_bits_of_launches_one_by_one(backend, request):
    communicator = request.getfixturevalue(backend)
    assert_replays_give_the_bits_of_launches_one_by_one(communicator=communicator, micro_batch=None)


@pytest.mark.emulated
def test_every_wait_for_the_gpu_is_one_that_the_watchdog_sees(emulation, monkeypatch):
    """Were a rank missing in a collective, the host would wait there: outside of these it would look busy."""
    steps, noted = Steps(), []
    whereabouts = steps.micro_batches._communicator.whereabouts
    waiting = whereabouts.waiting

    def note(what, size):
        noted.append(what)
        return waiting(what, size)

    monkeypatch.setattr(whereabouts, "waiting", note)
    warm_up, *measured = batches(4, STEPS)
    steps.take(warm_up)
    before = emulation.synchronisations
    noted.clear()
    for batch in measured:
        steps.take(batch)
    assert noted == ["wait for the GPU"] * 2 * len(measured)
    assert emulation.synchronisations - before <= len(noted)


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
def test_a_gpu_without_room_is_told_in_a_sentence():
    with pytest.raises(TrainingError, match=r"no room for what a micro-batch computes: 212.50 GiB more are needed"):
        Steps(activation_bytes=200 * 2**30)


@pytest.mark.emulated
def test_the_reference_does_not_train_on_a_gpu(monkeypatch):
    monkeypatch.setattr(kernels, "_on_gpu", lambda: reference)
    with pytest.raises(ConfigError, match="the reference kernels do not train on a GPU: unset LUCID_KERNELS"):
        kernels.set_attention("auto")


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
