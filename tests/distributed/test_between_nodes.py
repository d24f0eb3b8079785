"""Sums between nodes: the order of additions, the thread that carries them, and the bytes on the link."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hosts import LINK, until
from launching import FEW_CORES

from lucid.distributed import choose
from lucid.distributed.communicators import between_nodes
from lucid.distributed.parallel import exact
from lucid.errors import LaunchError

TESTS = Path(__file__).parents[1]
SECONDS = 60
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

several_ranks = pytest.mark.mpi(min_size=2)


@pytest.fixture
def ranks():
    """MPI's communicator of all ranks."""
    from mpi4py import MPI

    return MPI.COMM_WORLD


def array_of(rank, count, dtype=np.float32):
    return (np.random.default_rng(rank).standard_normal(count) * 10.0 ** (rank % 3)).astype(dtype)


def summed(ranks, array, wire_dtype=None):
    from mpi4py import MPI

    for _ in between_nodes.all_reduce(MPI, ranks, array, 1, np.dtype(wire_dtype or array.dtype)):
        pass
    return array


def of_all(ranks, array):
    """The array of every rank."""
    return ranks.allgather(array.tobytes())


@several_ranks
@pytest.mark.parametrize("count", [0, 1, 7, 300_001])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_terms_are_added_along_the_tree(ranks, count, dtype):
    terms = [array_of(rank, count, dtype) for rank in range(ranks.size)]
    while len(terms) > 1:
        terms = [terms[i] + terms[i + 1] if i + 1 < len(terms) else terms[i] for i in range(0, len(terms), 2)]
    assert summed(ranks, array_of(ranks.rank, count, dtype)).tobytes() == terms[0].tobytes()


@several_ranks
@pytest.mark.parametrize("count", [0, 1, 7, 300_001])
def test_in_bfloat16_terms_and_sum_are_rounded_once_each_and_all_ranks_get_the_same_bits(ranks, count):
    total = summed(ranks, array_of(ranks.rank, count), BFLOAT16)
    assert len(set(of_all(ranks, total))) == 1
    terms = np.array([array_of(rank, count, np.float64) for rank in range(ranks.size)])
    half_of_the_last_bit = 2.0**-8  # of a number, at most
    limit = 1.001 * half_of_the_last_bit * (np.abs(terms).sum(axis=0) + np.abs(total))
    assert (np.abs(total - terms.sum(axis=0)) <= limit).all()


@several_ranks
def test_numbers_that_are_not_finite_stay_so(ranks):
    array = np.array([np.inf, np.nan, 1.0] if ranks.rank == 0 else [1.0, 1.0, 1.0], np.float32)
    total = summed(ranks, array, BFLOAT16)
    assert np.isposinf(total[0])
    assert np.isnan(total[1])
    assert total[2] == ranks.size


def test_one_process_has_nothing_to_send(ranks):
    array = array_of(0, 1000)
    assert summed(ranks, array.copy()).tobytes() == array.tobytes()


@several_ranks
@pytest.mark.parametrize("count", [1, 7, 300_001])
def test_the_bits_are_those_of_the_exact_reduction_over_mpi(communicator, several_nodes, count):
    if communicator.size & (communicator.size - 1):
        pytest.skip("not a power of two")
    array, over_mpi = several_nodes.allocate(count, np.float32), array_of(communicator.rank, count)
    array[:] = over_mpi
    assert several_nodes.sums_along_tree(array)
    exact.all_reduce(communicator, over_mpi, np.empty((count + 1) // 2, np.float32))
    several_nodes.all_reduce(array).wait()
    assert array.tobytes() == over_mpi.tobytes()


@several_ranks
def test_sums_progress_while_no_rank_waits(several_nodes):
    """The main thread does nothing until all sums are done; there are more buckets than can be under way at once."""
    array = several_nodes.allocate(5_000_000, np.float32)
    for step in range(1, 4):
        array[:] = np.arange(array.size) % 1000 * (several_nodes.rank + step)
        works = [several_nodes.all_reduce(part) for part in np.split(array, 10)]
        until(lambda: not several_nodes._lockstep.has_tasks())
        for work in works:
            work.wait()
        total = sum(rank + step for rank in range(several_nodes.size))
        np.testing.assert_array_equal(array, np.arange(array.size, dtype=np.float32) % 1000 * total)


@several_ranks
def test_messages_of_all_kinds_travel_during_the_sums(several_nodes):
    rank, size = several_nodes.rank, several_nodes.size
    array = several_nodes.allocate(300_000, np.float32)
    for step in range(20):
        array[:] = rank + 1
        works = [several_nodes.all_reduce(part) for part in np.split(array, 3)]
        control = np.full(100_000, rank + step)
        message = several_nodes.all_reduce(control)
        several_nodes.barrier()
        assert several_nodes.all_reduce_scalar(1.0) == size
        message.wait()
        for work in works:
            work.wait()
        np.testing.assert_array_equal(array, np.full(300_000, size * (size + 1) // 2))
        np.testing.assert_array_equal(control, np.full(100_000, size * (size - 1) // 2 + size * step))


# Two ranks on NODES nodes sum ten parts of an array. WHAT runs first, and THEN before they wait.
PROGRAM = """
import mpi4py, os, signal, sys, threading
{level}
import numpy as np
from nodes import SeveralNodes
from lucid.distributed import choose, connection
from lucid.distributed.communicators import between_nodes
from lucid.errors import LucidError

connection.MPICommunicator = {nodes}
all_reduce = between_nodes.all_reduce

def fail(*arguments):
    yield
    raise ValueError(f"what {{threading.current_thread().name}} does fails")

def is_killed(*arguments):
    steps = all_reduce(*arguments)
    next(steps, None)  # its messages are under way, or have come already
    os.kill(os.getpid(), signal.SIGKILL)
    yield

with connection.session() as group:
    communicator = choose(group, "shared_memory")
    array = communicator.allocate(1_000_000, np.float32)
    array[:] = group.rank
    {what}
    works = [communicator.all_reduce(part) for part in np.split(array, 10)]
    threads = sorted(thread.name for thread in threading.enumerate())
    {then}
    for work in works:
        work.wait()
    assert (array == 1).all()
    sys.stdout.write(f"right, threads: {{threads}}\\n")
assert "progress" not in [thread.name for thread in threading.enumerate()]
"""


@pytest.fixture
def run_program(run_ranks):
    """A function that runs PROGRAM on two ranks."""

    def run(nodes="SeveralNodes", level="", what="", then=""):
        program = PROGRAM.format(nodes=nodes, level=level, what=what, then=then)
        return run_ranks(2, "-m", "mpi4py", "-c", program, seconds=SECONDS, PYTHONPATH=f"{TESTS}:{TESTS.parent}")

    return run


def test_between_nodes_a_thread_advances_the_sums_and_ends_with_the_communicator(run_program):
    finished = run_program()
    assert finished.returncode == 0, finished.stdout
    assert finished.stdout.count("right, threads: ['MainThread', 'launcher watch', 'progress']") == 2


def test_on_one_node_there_is_no_such_thread(run_program):
    finished = run_program(nodes="connection.MPICommunicator")
    assert finished.returncode == 0, finished.stdout
    assert finished.stdout.count("right, threads: ['MainThread', 'launcher watch']") == 2


def test_an_mpi_library_without_threads_sums_while_ranks_wait_and_says_so_once(run_program):
    finished = run_program(level="mpi4py.rc.thread_level = 'serialized'")
    assert finished.returncode == 0, finished.stdout
    assert finished.stdout.count("right, threads: ['MainThread', 'launcher watch']") == 2
    assert finished.stdout.count("gradients travel between nodes after backward") == 1


def test_an_error_in_the_thread_ends_all_with_its_traceback(run_program):
    """The main thread waits only after the error in the other thread."""
    finished = run_program(
        what="if group.rank == 1: between_nodes.all_reduce = fail",
        then="while group.rank == 1 and communicator._lockstep._failure is None: pass",
    )
    assert finished.returncode == 1, finished.stdout
    assert "what progress does fails" in finished.stdout
    assert finished.stdout.count("rank 1 of 2 failed") == 1
    assert finished.stdout.count("all ranks end:") == 1


def test_a_rank_killed_while_its_messages_travel_ends_all(run_program):
    finished = run_program(what="if group.rank == 1: between_nodes.all_reduce = is_killed")
    assert finished.returncode == signal.SIGKILL, finished.stdout
    assert "right" not in finished.stdout


def test_plain_mpi_refuses_to_round_between_nodes():
    group = SimpleNamespace(rank=0, size=4, node_count=2, evenly_spread=True)
    with pytest.raises(LaunchError, match=r"wire_dtype is bfloat16, but distributed\.backend is mpi") as caught:
        choose(group, "mpi", "bfloat16")
    assert caught.value.agreed
    group.evenly_spread = False
    with pytest.raises(LaunchError, match="wire_dtype is bfloat16, but the ranks are not evenly spread"):
        choose(group, "auto", "bfloat16")
    group.node_count = 1
    assert choose(group, "mpi", "bfloat16") is group


# Sums of 40 MB on two hosts. All numbers are integers below 256, which bfloat16 can represent.
TWO_HOSTS = """
import sys
import numpy as np
from lucid.distributed import choose, session

with session() as group:
    communicator = choose(group, "shared_memory", sys.argv[1])
    assert communicator.node_count == 2
    array = communicator.allocate(10_000_000, np.float32)
    array[:] = np.arange(array.size) % 64
    for work in [communicator.all_reduce(part) for part in np.split(array, 5)]:
        work.wait()
    assert (array == np.arange(array.size) % 64 * group.size).all()
    assert communicator.sums_along_tree(array) == (sys.argv[1] == "float32")
    sys.stdout.write("right\\n")
"""


@pytest.mark.parametrize("ranks_of_a_host", [1, 2])
def test_in_bfloat16_half_of_the_bytes_cross_the_link(hosts, mpiexec, ranks_of_a_host):
    sent = []
    for wire_dtype in ("float32", "bfloat16"):
        before = hosts.bytes_sent()
        finished = subprocess.run(
            [
                *hosts.mpiexec(mpiexec, ranks_of_a_host),
                *(sys.executable, "-m", "mpi4py", "-c", TWO_HOSTS, wire_dtype),
            ],
            env=os.environ | FEW_CORES | {"UCX_NET_DEVICES": LINK},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.count("right") == 2 * ranks_of_a_host
        sent.append(hosts.bytes_sent() - before)
    # Headers are 5% more, and a busy machine sends some again.
    assert 40e6 < sent[0] < 48e6
    assert 20e6 < sent[1] < 24e6


# Backward on two hosts. The first host delays its last gradient, if there are several buckets until bytes of the other
# gradients have crossed the link. BUCKETS is their size in MiB.
HELD_UP = """
import sys
import numpy as np
from pathlib import Path
import lucid
from hosts import LINK, until
from lucid.distributed import DistributedDataParallel, choose, session
from lucid.models import BERTConfig, BERTForPreTraining

BUCKETS, COUNTER = float(sys.argv[1]), Path(f"/sys/class/net/{LINK}/statistics/tx_bytes")

def sent():
    return int(COUNTER.read_text()) - before

def last_gradient():
    if group.rank == 0:
        if BUCKETS < 1:
            until(lambda: sent() > 500_000)
        print("before the end of backward:", sent(), flush=True)

with session() as group:
    lucid.manual_seed(0)
    model = BERTForPreTraining(BERTConfig(vocab_size=1000, hidden_size=128, num_hidden_layers=2, num_attention_heads=2))
    model.bert.embeddings.word_embeddings.weight.add_ready_hook(last_gradient)
    ddp = DistributedDataParallel(model, choose(group, "shared_memory"), BUCKETS)
    tokens = np.arange(64).reshape(2, 32) % 1000
    ddp.zero_grad()
    loss = ddp.module.get_loss(tokens, np.zeros(2, np.int64), input_ids=tokens)
    group.barrier()
    before = int(COUNTER.read_text())
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
"""


@pytest.mark.parametrize(("buckets", "early"), [("0.25", True), ("1000", False)])
def test_buckets_cross_the_link_before_backward_has_ended(hosts, mpiexec, buckets, early):
    finished = subprocess.run(
        [*hosts.mpiexec(mpiexec, 1), sys.executable, "-m", "mpi4py", "-c", HELD_UP, buckets],
        env=os.environ | FEW_CORES | {"UCX_NET_DEVICES": LINK, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    (line,) = finished.stdout.splitlines()
    sent = int(line.rpartition(":")[2])
    assert sent > 500_000 if early else sent < 50_000
    assert hosts.bytes_sent() > 4e6
