"""Communication between GPUs: rounded sums, capture, reasons against NCCL, and which rank uses which GPU.

Each rank has a GPU of its own, an emulated one (`tests/gpu/test_under_emulation.py`) or a real one: this, and all other
tests of groups, are run on two real ones by `mpiexec -n 2 python -m mpi4py -m pytest --only-mpi -m emulated
tests/distributed`.
"""

import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from test_communicator import anywhere, assert_holds, sum_of_ranks

from lucid.backend import GPUInfo, synchronise, to_device
from lucid.distributed import DistributedDataParallel, choose, device_for, find_drift, locate_ranks, wait_for_device
from lucid.distributed.communicators import nccl as nccl_module
from lucid.distributed.communicators.nccl import NCCLCommunicator
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.distributed.communicators.staged import StagedCommunicator
from lucid.distributed.locations import location_rows
from lucid.errors import LaunchError
from lucid.nn import Linear

pytestmark = [pytest.mark.mpi, pytest.mark.emulated]


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


@pytest.fixture(scope="session")
def rounding(nccl):
    """The communicator between GPUs that sums in bfloat16."""
    return NCCLCommunicator(nccl._base, nccl.device, "bfloat16")


def ones_and_less(group):
    """bfloat16 does not have 1 + 2**-9: it is rounded to 1."""
    return anywhere(group, np.full(1001, 1 + 2.0**-9, np.float32))


def test_sums_travel_rounded_and_arrive_in_float32(rounding):
    for _ in range(2):
        array = ones_and_less(rounding)
        rounding.all_reduce(array).wait()
        assert array.dtype == np.float32
        assert_holds(array, np.full(1001, rounding.size))


def test_a_part_of_the_sum_travels_rounded_too(rounding):
    size, rank = rounding.size, rounding.rank
    bounds = [1001 * part // size for part in range(size)] + [1001]
    for _ in range(2):
        array = ones_and_less(rounding)
        rounding.reduce_scatter(array, bounds).wait()
        own = slice(bounds[rank], bounds[rank + 1])
        assert_holds(array[own], np.full(own.stop - own.start, size))


def test_a_longer_array_after_a_shorter_one_is_rounded_too(rounding):
    for count in (3, 5000, 10):
        array = anywhere(rounding, np.full(count, rounding.rank + 1, np.float32))
        rounding.all_reduce(array).wait()
        assert_holds(array, np.full(count, sum_of_ranks(rounding)))


def test_arrays_that_are_not_summed_or_not_float32_are_not_rounded(rounding):
    exactly = 1 + 2.0**-20
    wide = anywhere(rounding, np.full(5, exactly))
    rounding.all_reduce(wide).wait()
    assert_holds(wide, np.full(5, rounding.size * exactly))
    weights = anywhere(rounding, np.full(rounding.size, exactly, np.float32))
    rounding.all_gather(weights, range(rounding.size + 1)).wait()
    rounding.broadcast(weights)
    assert_holds(weights, np.full(rounding.size, exactly))


def test_arrays_of_the_host_are_accepted_too(group):
    array = np.full(10, group.rank + 1)
    group.all_reduce(array).wait()
    np.testing.assert_array_equal(array, np.full(10, sum_of_ranks(group)))


def everything(group, array, room):
    """All collectives of arrays, one after the other: `array` [12] of r + 1 becomes the sum over ranks, twice over."""
    bounds = [0] * group.size + [12]
    group.all_reduce(array[:6]).wait()
    group.reduce_scatter(array[6:], [0] * group.size + [6]).wait()
    group.all_gather(array, bounds).wait()
    group.send_receive(array, room, group.size - 1 - group.rank).wait()
    room += array
    group.broadcast(room, group.size - 1)


def test_captured_collectives_replay_on_the_arrays_present_content(nccl, rounding, cupy):
    for group in (nccl, rounding):
        array, room = (cupy.zeros(12, np.float32) for _ in range(2))
        everything(group, array, room)
        # Which waits for the default stream, but not for this thread's own.
        synchronise()
        stream = cupy.cuda.Stream()
        with stream:
            stream.begin_capture()
            everything(group, array, room)
            graph = stream.end_capture()
            for step in range(3):
                array[...] = group.rank + step
                graph.launch(stream)
                expected = sum_of_ranks(group) + group.size * (step - 1)
                assert_holds(room, np.full(12, 2 * expected))


def test_arrays_go_through_the_host_by_mpi_too(staged_over_mpi, cupy):
    array, room = (cupy.full(12, staged_over_mpi.rank + 1, np.float32) for _ in range(2))
    everything(staged_over_mpi, array, room)
    assert_holds(room, np.full(12, 2 * sum_of_ranks(staged_over_mpi)))


def test_the_host_does_not_wait_for_collectives_over_nccl(nccl, cupy, device_counts):
    array, room = (cupy.ones(12, np.float32) for _ in range(2))
    before = device_counts.host_waits
    everything(nccl, array, room)
    assert device_counts.host_waits == before


def test_a_collective_leaves_the_current_stream_as_it_is(nccl, staged, cupy):
    stream = cupy.cuda.get_current_stream()
    assert stream.ptr != 0
    for group in (nccl, staged):
        everything(group, *(cupy.ones(12, np.float32) for _ in range(2)))
        assert cupy.cuda.get_current_stream() == stream


def test_the_time_that_the_gpu_waits_counts_once_it_has_passed_the_collective(nccl, cupy):
    before = nccl.seconds_waited
    with nccl.status.waiting("something on the host", 0):
        assert nccl.seconds_waited == before
    nccl.all_reduce(cupy.ones(12, np.float32)).wait()
    synchronise()
    after = nccl.seconds_waited
    assert after > before
    assert nccl.seconds_waited == after


def test_the_watchdog_sees_a_wait_for_the_gpu(nccl):
    seen = []
    event = SimpleNamespace(synchronize=lambda: seen.append(nccl.status.current.collective))
    wait_for_device(nccl, event)
    assert seen == ["wait for the GPU"]
    assert nccl.status.current.collective == ""


@pytest.mark.parametrize("array", [np.zeros(4, np.float16), np.zeros((4, 4), np.float32)])
def test_an_array_of_a_gpu_that_cannot_be_sent_is_refused_by_name(nccl, staged, array):
    for group in (nccl, staged):
        bad = to_device(array, group.device).T[:2]
        with pytest.raises(ValueError, match=r"^array (has dtype float16|must be C-contiguous)"):
            group.all_reduce(bad)


def test_an_array_of_another_gpu_is_refused(nccl, staged, cupy):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one GPU")
    elsewhere = "cuda:1" if nccl.device == "cuda:0" else "cuda:0"
    for group in (nccl, staged):
        with pytest.raises(ValueError, match=f"array is on {elsewhere}, but this communicator is for {group.device}"):
            group.all_reduce(to_device(np.zeros(3), elsewhere))


def test_arrays_that_are_swapped_are_on_one_device(nccl, staged):
    for group in (nccl, staged):
        with pytest.raises(ValueError, match=f"outgoing is on {group.device}, but incoming is on cpu"):
            group.send_receive(to_device(np.zeros(3), group.device), np.zeros(3), 0)


def test_a_connection_that_hangs_at_its_end_does_not_delay_the_end_of_the_job(nccl, monkeypatch):
    monkeypatch.setattr(nccl_module, "_SECONDS_TO_LEAVE", 0.01)
    gate = threading.Event()
    monkeypatch.setattr(nccl, "_connection", SimpleNamespace(abort=gate.wait, destroy=gate.wait))
    monkeypatch.setattr(nccl, "_has_left", False)
    nccl.on_abort()
    nccl.on_close()
    # It reports no failure any more: that would only be its end.
    assert nccl.failure() == ""
    gate.set()


@pytest.mark.parametrize(("status", "words"), [(6, "NCCL_ERROR_REMOTE_ERROR"), (8, "status 8")])
def test_a_failure_of_nccl_becomes_a_sentence(nccl, communicator, cupy, monkeypatch, status, words):
    def check_async_error():
        raise cupy.cuda.nccl.NcclError(status)

    assert communicator.failure() == ""
    monkeypatch.setattr(nccl, "_connection", SimpleNamespace(check_async_error=check_async_error))
    assert communicator.failure().startswith(f"NCCL lost the connection to other GPUs: {words}")


def test_ranks_with_a_gpu_each_use_nccl_and_a_single_rank_needs_nothing(communicator):
    chosen = choose(communicator, "auto", device="cuda")
    assert isinstance(chosen, SingleCommunicator if communicator.size == 1 else NCCLCommunicator)
    assert (chosen.device, chosen.remark) == (f"cuda:{communicator.local_rank}", "")


@pytest.mark.parametrize("backend", ["mpi", "shared_memory"])
def test_another_backend_goes_through_the_host_without_a_remark(communicator, backend):
    chosen = choose(communicator, backend, device="cuda")
    assert isinstance(chosen, SingleCommunicator if communicator.size == 1 else StagedCommunicator)
    assert chosen.remark == ""


OBSTACLES = pytest.mark.parametrize(
    ("address", "version", "obstacle"),
    [
        ("0", "2.28.9", r"ranks 0, {last} share one GPU of \S+, and NCCL takes one rank on each"),
        (None, "", r"CuPy finds no NCCL on \S+ \(pip install"),
        (None, "2.27.3", r"\S+ has NCCL 2\.27\.3, but \S+ has 2\.28\.9"),
    ],
    ids=["shared", "missing", "other-version"],
)


@pytest.mark.mpi(min_size=2)
@OBSTACLES
def test_the_reason_against_nccl_is_a_remark_or_a_refusal_if_nccl_was_selected(
    communicator, monkeypatch, address, version, obstacle
):
    is_last = communicator.rank == communicator.size - 1
    gpu = GPUInfo("GPU", (address if is_last else None) or str(communicator.rank), version if is_last else "2.28.9")
    monkeypatch.setattr(GPUInfo, "at", lambda device: gpu)
    obstacle = obstacle.format(last=communicator.size - 1)
    chosen = choose(communicator, "auto", device="cuda")
    assert isinstance(chosen, StagedCommunicator)
    assert re.match(f"gradients go through the host's memory, not by NCCL, which is slower: {obstacle}", chosen.remark)
    with pytest.raises(LaunchError, match=f"^distributed.backend is nccl, but {obstacle}") as refusal:
        choose(communicator, "nccl", device="cuda")
    assert refusal.value.agreed


def test_more_ranks_than_gpus_share_them(communicator, monkeypatch, cupy):
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: 2)
    with cupy.cuda.Device():  # the current one again afterwards
        assert device_for(communicator, "cuda") == f"cuda:{communicator.local_rank % 2}"
        assert device_for(communicator, "cuda:0") == "cuda:0"


def test_the_table_of_ranks_shows_their_gpus(nccl, cupy):
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    assert location_rows(locate_ranks(nccl, 1, nccl.device))[0].device == f"{nccl.size} x {name}"


def test_a_model_on_another_device_than_the_communicator_is_refused(nccl):
    with pytest.raises(ValueError, match=f"weight is on cpu, the communicator on {nccl.device}"):
        DistributedDataParallel(Linear(2, 2), nccl)


def test_replicas_on_gpus_are_compared(group):
    device = group.device
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    weights[1, 2] += group.rank > 0 and group.rank == group.size - 1
    drift = find_drift({"a": to_device(weights * 2, device), "b": to_device(np.ones(3), device)}, group)
    assert (drift is not None) == (group.size > 1)
    assert drift is None or drift.names == ["a"]
