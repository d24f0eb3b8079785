"""Every collective against its closed form, where rank r holds r + 1, and twice, on any number of ranks.

The arrays are where the group's are: on emulated GPUs as well (`tests/gpu/test_under_emulation.py`).
"""

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest

from lucid.backend import copy, to_device, to_host
from lucid.distributed import connect
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.errors import ConfigError

DTYPES = ["float32", "float64", "int32", "int64"]


def anywhere(group, array):
    """`array` on the group's device."""
    return to_device(array, group.device)


def placed(group, array):
    """A copy of `array` in memory that the group allocates."""
    room = group.allocate(array.size, array.dtype).reshape(array.shape)
    copy(array, room)
    return room


# Backends may treat memory that they allocated differently.
PLACES = pytest.mark.parametrize("place", [anywhere, placed])


def assert_holds(array, expected):
    np.testing.assert_array_equal(to_host(array), expected)


def sum_of_ranks(group):
    """1 + 2 + ... + size."""
    return group.size * (group.size + 1) // 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 7, 100_003])
@PLACES
def test_all_reduce_sums_in_place(group, count, dtype, place):
    for _ in range(2):
        array = place(group, np.full(count, group.rank + 1, dtype))
        group.all_reduce(array).wait()
        assert_holds(array, np.full(count, sum_of_ranks(group), dtype))


@PLACES
def test_all_reduce_takes_a_slice_and_leaves_its_neighbours_alone(group, place):
    array = place(group, np.full(30, group.rank + 1, np.float32))
    group.all_reduce(array[10:20]).wait()
    assert_holds(array[10:20], np.full(10, sum_of_ranks(group)))
    assert_holds(np.delete(to_host(array), np.s_[10:20]), np.full(20, group.rank + 1))


@PLACES
def test_several_works_run_at_once_and_may_be_waited_for_again(group, place):
    arrays = [place(group, np.full(1000, (group.rank + 1) * k, np.float64)) for k in range(5)]
    works = [group.all_reduce(array) for array in arrays]
    for work in [*reversed(works), *works]:
        work.wait()
    for k, array in enumerate(arrays):
        assert_holds(array, np.full(1000, sum_of_ranks(group) * k))


def test_a_work_keeps_its_arrays_alive(group):
    works = [group.all_reduce(anywhere(group, np.ones(100_000, np.float32))) for _ in range(20)]
    for work in works:
        work.wait()


# The starts of the parts of 60,000 elements: even parts, and uneven parts, some of them empty.
CUTS = pytest.mark.parametrize(
    "cut",
    [lambda size: np.arange(size) * 60_000 // size, lambda size: np.array([0, 7, 7, 30_000])[:size]],
    ids=["even", "uneven"],
)


def bounds_of(group, cut):
    return [*cut(group.size).tolist(), 60_000]


def parts_of(group, cut, values):
    """An array of 60,000 elements whose parts hold one value each."""
    return np.repeat(values, np.diff(bounds_of(group, cut)))


@PLACES
@CUTS
@pytest.mark.parametrize("dtype", DTYPES)
def test_reduce_scatter_leaves_each_rank_its_part_of_the_sum(group, dtype, cut, place):
    bounds = bounds_of(group, cut)
    own = slice(bounds[group.rank], bounds[group.rank + 1])
    for _ in range(2):
        array = place(group, parts_of(group, cut, np.arange(group.size, dtype=dtype)) * (group.rank + 1))
        group.reduce_scatter(array, bounds).wait()
        assert_holds(array[own], np.full(own.stop - own.start, group.rank * sum_of_ranks(group)))


def allocated_for_node(group, array):
    """Zeros in memory that the ranks of a node share."""
    return group.allocate_for_node(array.size, array.dtype).reshape(array.shape)


@pytest.mark.parametrize("place", [anywhere, placed, allocated_for_node])
@CUTS
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_gather_sends_every_ranks_part_to_all(group, dtype, cut, place):
    bounds = bounds_of(group, cut)
    array = place(group, np.zeros((6, 10_000), dtype))
    for step in range(3):
        array.reshape(-1)[bounds[group.rank] : bounds[group.rank + 1]] = group.rank + step
        group.all_gather(array, bounds).wait()
        assert_holds(array.reshape(-1), parts_of(group, cut, np.arange(group.size) + step))
        group.barrier()


def test_memory_of_the_node_is_broadcast_too(group):
    array = group.allocate_for_node(1000, np.float32)
    if group.rank == group.size - 1:
        array[:] = 42
    group.broadcast(array, group.size - 1)
    assert_holds(array, np.full(1000, 42))


@pytest.mark.parametrize("dtype", DTYPES)
def test_send_receive_swaps_arrays_of_equal_and_unequal_sizes(group, dtype):
    peer = group.size - 1 - group.rank
    for _ in range(2):
        incoming = anywhere(group, np.empty(peer + 1, dtype))
        outgoing = anywhere(group, np.full(group.rank + 1, group.rank + 1, dtype))
        group.send_receive(outgoing, incoming, peer).wait()
        assert_holds(incoming, np.full(peer + 1, peer + 1, dtype))


@pytest.mark.parametrize("dtype", [*DTYPES, "uint8"])
def test_broadcast_gives_the_roots_array_to_all(group, dtype):
    for root in range(group.size):
        array = anywhere(group, np.full((3, 4), group.rank + 1, dtype))
        group.broadcast(array, root)
        assert_holds(array, np.full((3, 4), root + 1, dtype))


def test_the_sum_of_a_scalar_is_made_in_float64(group):
    assert group.all_reduce_scalar(2.0**40 + group.rank) == group.size * 2.0**40 + sum_of_ranks(group) - group.size


@PLACES
def test_all_ranks_get_the_same_bits(group, place):
    mine = place(group, np.random.default_rng(group.rank).standard_normal(10_001).astype(np.float32))
    group.all_reduce(mine).wait()
    roots = mine.copy()
    group.broadcast(roots)
    assert to_host(mine).tobytes() == to_host(roots).tobytes()


def test_every_rank_knows_its_number(group):
    group.barrier()
    assert 0 <= group.rank < group.size
    ranks_of_a_node = group.size // group.node_count
    assert group.local_rank == group.rank % ranks_of_a_node


def test_allocate_gives_zeros(group):
    array = group.allocate(1000, np.float32)
    assert array.dtype == np.float32
    assert_holds(array, np.zeros(1000))


@pytest.mark.mpi(min_size=2)
def test_a_program_may_use_mpi_itself(communicator):
    from mpi4py import MPI

    before, after = (communicator.rank + 1) % communicator.size, (communicator.rank - 1) % communicator.size
    theirs = np.empty(3)
    request = MPI.COMM_WORLD.Irecv(theirs, before)
    communicator.barrier()
    peer = communicator.size - 1 - communicator.rank
    communicator.send_receive(np.full(3, -1.0), np.empty(3), peer).wait()
    MPI.COMM_WORLD.Send(np.full(3, 42.0), after)
    request.Wait()
    np.testing.assert_array_equal(theirs, np.full(3, 42.0))


@pytest.mark.mpi(min_size=2)
def test_an_array_outlives_a_caller_who_never_waits(communicator):
    array = np.ones(3)
    alive = weakref.ref(array)
    communicator.all_reduce(array)
    del array
    gc.collect()
    assert alive() is not None


STRIDED = np.zeros((4, 4), np.float32)[:, 1]
GOOD = np.zeros(4, np.float32)


@pytest.mark.parametrize("array", [STRIDED, np.zeros(4, np.float16), np.zeros(4, object), [1.0]])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("array", lambda group, bad: group.all_reduce(bad)),
        ("array", lambda group, bad: group.broadcast(bad)),
        ("array", lambda group, bad: group.reduce_scatter(bad, [0, 4])),
        ("array", lambda group, bad: group.all_gather(bad, [0, 4])),
        ("outgoing", lambda group, bad: group.send_receive(bad, GOOD, 0)),
        ("incoming", lambda group, bad: group.send_receive(GOOD, bad, 0)),
    ],
)
def test_an_array_that_cannot_be_sent_is_refused_by_name(group, name, call, array):
    with pytest.raises(ValueError, match=f"^{name} "):
        call(group, array)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("bounds are", lambda group: group.reduce_scatter(np.zeros(5), [0] * group.size + [4])),
        ("bounds are", lambda group: group.all_gather(np.zeros(5), [0] * group.size + [4])),
        ("bounds are", lambda group: group.all_gather(np.zeros(5), [1] + [5] * group.size)),
        ("outgoing has dtype float64", lambda group: group.send_receive(np.zeros(4), np.zeros(4, "f4"), 0)),
        ("outgoing and incoming overlap", lambda group: group.send_receive(GOOD, GOOD, 0)),
        ("root is rank -1", lambda group: group.broadcast(np.zeros(4), -1)),
        ("peer is rank 99", lambda group: group.send_receive(np.zeros(4), np.zeros(4), 99)),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(group, message, call):
    with pytest.raises(ValueError, match=message):
        call(group)


def test_without_a_launcher_there_is_one_process(monkeypatch):
    monkeypatch.setattr("lucid.distributed.connection.announced", lambda: None)
    assert isinstance(connect(), SingleCommunicator)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match="'gloo' is not known"):
        connect("gloo")


def test_abort_ends_the_process_from_any_thread_with_its_code():
    program = (
        "import threading; from lucid.distributed import connect; communicator = connect('single');"
        "print('before'); thread = threading.Thread(target=communicator.abort, args=(7,));"
        "thread.start(); thread.join(); print('after')"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (7, "before\n")
