"""Shared memory between the ranks of one node: its sums, its waiting, its limits, and its end.

That every collective does there what it should is in test_communicator.py, and the order of it in test_lockstep.py.
"""

import os
import random
import subprocess
import sys
import time
import weakref
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hosts import LINK
from launching import FEW_CORES

from lucid.distributed import DistributedDataParallel, choose
from lucid.distributed.communicators import shared_memory as shared_memory_module
from lucid.distributed.communicators.communicator import Finished
from lucid.distributed.communicators.mpi_start import lack_of_shared_memory, size_and_free
from lucid.distributed.communicators.shared_memory import SharedMemoryCommunicator
from lucid.distributed.parallel import exact
from lucid.errors import ConfigError, LaunchError
from lucid.launch.limits import HostMemory
from lucid.nn import Linear
from lucid.optim import AdamW

SECONDS = 60


def placed(communicator, array):
    room = communicator.allocate(array.size, array.dtype)
    room[:] = array
    return room


def random_array(rank, count):
    return np.random.default_rng(rank).standard_normal(count).astype(np.float32) * 10.0 ** (rank % 3)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("count", [1, 7, 1000, 300_001])
def test_the_bits_are_those_of_the_exact_reduction_over_mpi(communicator, shared_memory, count):
    size = communicator.size
    if size & (size - 1):
        pytest.skip("not a power of two")
    mine = random_array(communicator.rank, count)
    shared, over_mpi = placed(shared_memory, mine), mine.copy()
    exact.all_reduce(communicator, over_mpi, np.empty((count + 1) // 2, np.float32))
    shared_memory.all_reduce(shared).wait()
    assert shared.tobytes() == over_mpi.tobytes()


@pytest.mark.mpi(min_size=2)
def test_a_scattered_sum_has_the_bits_of_the_whole_one(shared_memory):
    rank, size = shared_memory.rank, shared_memory.size
    scattered, whole = (placed(shared_memory, random_array(rank, 300_001)) for _ in range(2))
    bounds = (np.arange(size + 1) * 300_001 // size).tolist()
    shared_memory.reduce_scatter(scattered, bounds).wait()
    shared_memory.all_reduce(whole).wait()
    own = slice(bounds[rank], bounds[rank + 1])
    assert scattered[own].tobytes() == whole[own].tobytes()


@pytest.mark.mpi(min_size=2)
def test_it_serves_all_parts_of_allocated_memory_and_no_other_arrays(shared_memory):
    array = shared_memory.allocate(1000, np.float32)
    assert all(shared_memory.sums_along_tree(part) for part in (array, array[:1], array[-1:], array.reshape(10, 100)))
    assert not shared_memory.sums_along_tree(np.zeros(1000, np.float32))


@pytest.mark.mpi(min_size=2)
def test_memory_is_released_with_the_last_array_that_views_it(shared_memory):
    array = shared_memory.allocate(1000, np.float32)
    weights = shared_memory.allocate_for_node(1000, np.float32)
    memories = [weakref.ref(each.base) for each in (array, weights)]
    part, of_weights = array[10:20].view(np.uint8), weights.reshape(10, 100)[2]
    del array, weights
    assert shared_memory.sums_along_tree(part)
    assert shared_memory.shares_with_node(of_weights)
    del part, of_weights
    assert [memory() for memory in memories] == [None, None]


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("required", [False, True], ids=["auto", "required"])
def test_without_room_for_a_copy_of_the_weights_each_rank_keeps_its_own(communicator, required, monkeypatch, capfd):
    """Gradients and weights remain in shared memory, and the weights get the same bits."""
    rooms = iter([1 << 30, 1 << 30, 0, *[1 << 30] * 4])
    monkeypatch.setattr(shared_memory_module, "size_and_free", lambda folder: (1 << 40, next(rooms)))
    group = SharedMemoryCommunicator(communicator, required)
    trained = []
    for is_shared in (False, True):
        ddp = DistributedDataParallel(Linear(50, 40, deviation=0.1), group, sharded=True, bfloat16_copy=True)
        optimizer, flat = AdamW(ddp.partition), ddp.flat
        assert group.sums_along_tree(flat.gradients)
        assert group.shares_with_node(flat.values)
        assert group.shares_with_node(flat.bfloat16_copy) == ddp.partition.publishes_copy == is_shared
        flat.values[:] = random_array(0, len(flat.values))
        flat.gradients[:] = random_array(1, len(flat.gradients))
        group.barrier()
        optimizer.step(1e-2)
        np.testing.assert_array_equal(flat.bfloat16_copy, flat.values.astype(ml_dtypes.bfloat16))
        trained.append(flat.values.tobytes())
        group.barrier()
    assert trained[0] == trained[1]
    said = capfd.readouterr().err
    assert said.count("each rank keeps its own copy of the weights in bfloat16") == (group.rank == 0)
    assert "plain MPI" not in said


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("sharded", [False, True])
def test_the_exact_reduction_sends_no_messages_there(shared_memory, monkeypatch, sharded):
    def send_receive(*arguments):
        raise AssertionError("a message was sent")

    monkeypatch.setattr(shared_memory, "send_receive", send_receive)
    if shared_memory.size & (shared_memory.size - 1):
        pytest.skip("not a power of two")
    layer = Linear(3, 2)
    ddp = DistributedDataParallel(layer, shared_memory, exact_micro_batches=1, sharded=sharded)
    layer(np.full((1, 3), shared_memory.rank + 1, np.float32)).sum().backward()
    for part in ddp.partition.slices:
        sums = ddp.flat.gradients[part.elements][: 6 if part.decay else 2]
        expected = shared_memory.size * (shared_memory.size + 1) // 2 if part.decay else shared_memory.size
        np.testing.assert_array_equal(sums, np.full(len(sums), expected))


@pytest.mark.mpi(min_size=2)
def test_ranks_wait_for_those_that_are_late(shared_memory, monkeypatch):
    """Each rank in turn is late at every point of the protocol, by varying times."""
    rank, size, lockstep = shared_memory.rank, shared_memory.size, shared_memory._lockstep
    fence, late, draw = lockstep._fence, [0], random.Random(rank)

    def be_late():
        if rank == late[0]:
            time.sleep(draw.choice((0, 0, 0.0003, 0.002)))
        fence()

    monkeypatch.setattr(lockstep, "_fence", be_late)
    array = shared_memory.allocate(4000, np.int64)
    buckets = np.split(array, 4)
    for step in range(40):
        late[0] = step % size
        works = []
        for number, bucket in enumerate(buckets):
            bucket[:] = value_of(step, number, rank)
            works.append(shared_memory.all_reduce(bucket))
        for number, (bucket, work) in enumerate(zip(buckets, works, strict=True)):
            work.wait()
            total = sum(value_of(step, number, other) for other in range(size))
            np.testing.assert_array_equal(bucket, np.full(1000, total))
            bucket[:] = -1


def value_of(step, bucket, rank):
    return (step + 1) * 1000 + (bucket + 1) * 100 + 7**rank


@pytest.mark.mpi(min_size=2)
def test_messages_and_shared_memory_work_at_the_same_time(shared_memory):
    rank, size = shared_memory.rank, shared_memory.size
    array = shared_memory.allocate(300_000, np.float32)
    for step in range(20):
        control = np.full(100_000, rank + step)
        message = shared_memory.all_reduce(control)
        array[:] = rank + 1
        works = [shared_memory.all_reduce(part) for part in np.split(array, 3)]
        shared_memory.barrier()
        for work in works:
            work.wait()
        message.wait()
        np.testing.assert_array_equal(array, np.full(300_000, size * (size + 1) // 2))
        np.testing.assert_array_equal(control, np.full(100_000, size * (size - 1) // 2 + size * step))


@pytest.mark.mpi(min_size=2)
def test_the_status_of_a_waiting_rank_names_the_collective(shared_memory, monkeypatch):
    """The first rank is late: the second sends its status to it, and waits until it comes."""
    from mpi4py import MPI

    array = shared_memory.allocate(250_000, np.float32)
    lockstep, statuses = shared_memory._lockstep, []
    idle = lockstep._idle

    def tell(attempts):
        if not statuses:
            statuses.append(shared_memory.status.current)
            MPI.COMM_WORLD.send(str(statuses[0]), 0)
        idle(attempts)

    if shared_memory.rank == 1:
        monkeypatch.setattr(lockstep, "_idle", tell)
    if shared_memory.rank == 0:
        assert MPI.COMM_WORLD.recv(source=1).startswith("in all_reduce of 1.0 MB (wait ")
    shared_memory.all_reduce(array).wait()
    assert shared_memory.status.current.collective == ""


def test_a_single_process_accepts_any_backend(communicator):
    for backend in ("auto", "single", "mpi", "shared_memory"):
        assert choose(communicator, backend) is communicator
    assert isinstance(communicator.all_reduce(communicator.allocate(3, np.float32)), Finished)


def test_ranks_not_evenly_spread_over_nodes_get_mpi_or_a_refusal():
    group = SimpleNamespace(rank=0, size=3, node_count=2, evenly_spread=False)
    assert choose(group, "auto") is group
    with pytest.raises(LaunchError, match="the 3 ranks are not evenly spread over the 2 nodes") as caught:
        choose(group, "shared_memory")
    assert caught.value.agreed


# Four ranks on two hosts sum 40 MB of integers, in buckets, and print their results.
TWO_HOSTS = """
import sys
import numpy as np
from lucid.distributed import choose, session

with session() as group:
    communicator = choose(group, "shared_memory")
    rank, size = communicator.rank, communicator.size
    assert (size, communicator.node_count) == (4, 2)
    array = communicator.allocate(10_000_000, np.float32)
    array[:] = np.arange(array.size) % 1000 * (rank + 1)
    for work in [communicator.all_reduce(part) for part in np.split(array, 5)]:
        work.wait()
    assert (array == np.arange(array.size) % 1000 * 10).all()
    assert communicator.sums_along_tree(array)
    bounds = [0, 1_000_000, 1_000_001, 6_000_000, array.size]
    own = slice(bounds[rank], bounds[rank + 1])
    communicator.reduce_scatter(array, bounds).wait()
    assert (array[own] == (np.arange(array.size) % 1000 * 40)[own]).all()
    weights = communicator.allocate_for_node(array.size, np.float32)
    if rank == 1:
        weights[:] = 7
    communicator.broadcast(weights, 1)
    assert (weights == 7).all()
    communicator.barrier()
    for step in range(5):
        weights[own] = array[own] + step
        communicator.all_gather(weights, bounds).wait()
        assert (weights == np.arange(array.size) % 1000 * 40 + step).all()
        communicator.barrier()
    sys.stdout.write("right\\n")
"""


def test_ranks_on_two_hosts_sum_within_each_host_first(hosts, mpiexec):
    finished = subprocess.run(
        [*hosts.mpiexec(mpiexec, 2), sys.executable, "-m", "mpi4py", "-c", TWO_HOSTS],
        env=os.environ | FEW_CORES | {"UCX_NET_DEVICES": LINK},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("right") == 4


# Two ranks allocate 64 MiB in four arrays. A private /dev/shm has room for one array and for MPI's own memory.
PROGRAM = """
import os, sys
import numpy as np
from lucid.distributed import choose, session
from lucid.errors import LucidError

try:
    with session() as group:
        communicator = choose(group, "{backend}")
        shared = []
        for _ in range(4):
            array = communicator.allocate(2**20, np.float64)
            array[:] = communicator.rank + 1
            communicator.all_reduce(array).wait()
            assert (array == 3).all()
            shared.append(communicator.sums_along_tree(array))
        sys.stdout.write(f"shared: {{shared}}\\n")
        {last}
except LucidError as error:
    raise SystemExit(error.exit_code)
"""


def private_shared_memory(mebibytes, access="rw"):
    """A command that runs another one with a small private /dev/shm, and prints how many MiB it uses at the end."""
    mount = f"mount -t tmpfs -o size={mebibytes}m,{access} tmpfs /dev/shm"
    unshare = ["unshare", *(["--map-root-user"] if os.geteuid() else []), "--mount"]
    try:
        subprocess.run([*unshare, "sh", "-c", mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this process may not mount a file system of its own")
    after = 'code=$?; echo "used: $(du -sm /dev/shm | cut -f1)"; exit $code'
    return (*unshare, "sh", "-c", f'{mount}; "$@"; {after}', "sh")


def test_too_little_shared_memory_is_a_sentence_and_not_a_bus_error(run_ranks):
    program = PROGRAM.format(backend="shared_memory", last="")
    finished = run_ranks(2, "-c", program, within=private_shared_memory(40), seconds=SECONDS)
    assert finished.returncode == ConfigError.exit_code, finished.stdout
    assert finished.stdout.count("16 MiB more of shared memory") == 1
    assert "--shm-size" in finished.stdout
    assert "Traceback" not in finished.stdout


def test_auto_uses_mpi_for_arrays_that_do_not_fit_and_says_so(run_ranks):
    program = PROGRAM.format(backend="auto", last="")
    finished = run_ranks(2, "-c", program, within=private_shared_memory(40), seconds=SECONDS)
    assert finished.returncode == 0, finished.stdout
    assert finished.stdout.count("shared: [True, False, False, False]") == 2
    assert finished.stdout.count("plain MPI in float32, more slowly") == 1


@pytest.mark.parametrize(
    ("within", "sentence"),
    [((1,), "/dev/shm has 1.05 MB for 2 ranks"), ((64, "ro"), r"/dev/shm cannot be written (Read-only file system)")],
)
def test_where_mpi_cannot_start_for_lack_of_shared_memory_one_rank_says_so(run_ranks, within, sentence):
    program = PROGRAM.format(backend="auto", last="")
    finished = run_ranks(2, "-c", program, within=private_shared_memory(*within), seconds=SECONDS)
    assert finished.returncode == LaunchError.exit_code, finished.stdout
    assert finished.stdout.count("lucid: MPI cannot start on") == 1
    assert sentence in finished.stdout
    assert "--shm-size" in finished.stdout


def test_a_folder_of_shared_memory_without_a_limit_has_that_of_the_host(monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_blocks=0, f_bavail=0, f_frsize=4096))
    assert size_and_free() == (HostMemory.read().most, pytest.approx(HostMemory.read().free, rel=0.1))
    assert lack_of_shared_memory(1) is None


def test_mpi_starts_where_ucx_finds_too_little_shared_memory(run_ranks):
    """UCX crashes if it finds a part of what it wants."""
    program = PROGRAM.format(backend="auto", last="")
    finished = run_ranks(2, "-c", program, within=private_shared_memory(18), seconds=SECONDS)
    assert finished.returncode == 0, finished.stdout
    assert finished.stdout.count("shared: [False, False, False, False]") == 2


@pytest.mark.parametrize(
    "last", ["", "sys.stdout.flush(); communicator.rank or os.kill(os.getpid(), 9); communicator.barrier()"]
)
def test_no_memory_is_left_after_any_kind_of_end(run_ranks, last):
    program = PROGRAM.format(backend="shared_memory", last=last)
    finished = run_ranks(2, "-c", program, within=private_shared_memory(200), seconds=SECONDS)
    assert finished.returncode == (9 if last else 0), finished.stdout
    assert "shared: [True, True, True, True]" in finished.stdout
    # A rank that is killed leaves some small files of MPICH's own.
    assert int(finished.stdout.split("used: ")[1].split()[0]) < 16


# Two ranks hold a model whose values each has for itself, and one whose values they share; then they disconnect.
AFTERWARDS = """
import sys
from lucid.distributed import DistributedDataParallel, connect
from lucid.nn import Linear

communicator = connect("shared_memory")
models = [DistributedDataParallel(Linear(3, 2), communicator, sharded=sharded) for sharded in (False, True)]
before = [{name: values.copy() for name, values in model.module.state_dict().items()} for model in models]
communicator.close()
communicator.close()
array = models[0].flat.values
for call in (
    lambda: communicator.all_reduce(array), lambda: communicator.all_reduce(array.copy()), communicator.barrier,
    lambda: communicator.broadcast(array), lambda: communicator.all_reduce_scalar(1.0), communicator.side_channel,
    lambda: communicator.allocate(3, "f4"),
):
    try:
        call()
    except RuntimeError as error:
        assert "this communicator has closed" in str(error)
    else:
        raise AssertionError("no error")
for model, values in zip(models, before):
    after = model.module.state_dict()
    assert all((values[name] == after[name]).all() for name in values)
    model.flat.gradients[:] = 1
sys.stdout.write("readable\\n")
"""


def test_arrays_remain_after_the_communicator_has_closed(run_ranks):
    finished = run_ranks(2, "-c", AFTERWARDS, seconds=SECONDS)
    assert finished.returncode == 0, finished.stdout
    assert finished.stdout.count("readable") == 2


def test_one_process_for_several_ranks_is_refused_once(run_ranks):
    finished = run_ranks(2, "-c", PROGRAM.format(backend="single", last=""), seconds=SECONDS)
    assert finished.returncode == LaunchError.exit_code
    assert finished.stdout.count("lucid: distributed.backend is single, but there are 2 ranks") == 1


@pytest.mark.parametrize("reduction", ["fast", "exact"])
def test_a_run_has_the_losses_of_one_over_mpi(train, reduction):
    """The sum of two numbers does not depend on their order."""
    settings = ("train.steps=8", "train.micro_batch=3", f"train.reduction={reduction}")
    runs = [train(2, name, *settings, f"distributed.backend={name}") for name in ("mpi", "shared_memory")]
    assert runs[0] == runs[1]
