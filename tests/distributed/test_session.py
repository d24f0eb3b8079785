"""How ranks leave together: errors that all agree on, errors of one rank, and the end of a session."""

import sys
import threading

import numpy as np
import pytest
from isolation import REPOSITORY
from nodes import SeveralNodes

from lucid.distributed import all_or_none, choose, gather_rows, gather_texts, session
from lucid.distributed.connection import join
from lucid.errors import ConfigError, DataError, LucidError, TrainingError
from lucid.kernels import onednn

SECONDS = 20


def test_a_result_of_all_ranks_is_returned(group):
    assert all_or_none(group, lambda: group.rank * 10) == group.rank * 10


def test_the_first_ranks_error_is_raised_on_all(group):
    last = group.size - 1

    def action():
        if group.rank >= last - 1:
            raise TrainingError(f"disk of rank {group.rank} is full: naïve")
        return group.rank

    with pytest.raises(LucidError, match=f"^disk of rank {max(last - 1, 0)} is full: naïve$") as caught:
        all_or_none(group, action)
    assert type(caught.value) is TrainingError
    assert caught.value.exit_code == TrainingError.exit_code
    assert caught.value.agreed


class DiskError(DataError):
    """An error that other ranks need not know the class of."""

    exit_code = 7


@pytest.mark.parametrize(("kind", "agreed"), [(ConfigError, ConfigError), (DiskError, DataError)])
def test_every_rank_catches_an_agreed_error_by_its_class(group, kind, agreed):
    def action():
        if group.rank == group.size - 1:
            raise kind("a \udcff name")

    with pytest.raises(agreed) as caught:
        all_or_none(group, action)
    assert type(caught.value) is agreed
    assert str(caught.value) == "a \udcff name"
    assert caught.value.exit_code == kind.exit_code


def test_every_rank_gets_the_texts_of_all_in_order(group):
    texts = [f"naïve {rank}" * rank for rank in range(group.size)]
    assert gather_texts(group, texts[group.rank]) == texts


@pytest.mark.parametrize("row", [np.array(3), np.array([1.5, -0.25]), np.array([[2**40, 1], [0, 7]])])
def test_all_ranks_get_the_numbers_of_each(group, row):
    rows = gather_rows(group, row * (group.rank + 1))
    assert rows.dtype == row.dtype
    np.testing.assert_array_equal(rows, [row * (rank + 1) for rank in range(group.size)])


def test_an_error_that_is_not_for_the_user_is_not_shared():
    with session("single") as communicator, pytest.raises(ZeroDivisionError):
        all_or_none(communicator, lambda: 1 / 0)


def test_a_session_restores_the_hooks():
    hooks = sys.excepthook, threading.excepthook
    with session("single"):
        assert sys.excepthook is not hooks[0]
    with pytest.raises(KeyError), session("single"):
        raise KeyError
    assert (sys.excepthook, threading.excepthook) == hooks


def sum_that_nobody_waits_for(backend, nodes):
    """Begin a sum, and close, as after an error that all ranks have; return whether the sum is there."""
    communicator = choose(nodes(), backend)
    array = communicator.allocate(2_000_000, np.float64)
    array[:] = communicator.rank + 1
    communicator.barrier()
    communicator.all_reduce(array)
    communicator.close()
    return bool((array == 3).all())


@pytest.mark.parametrize(("backend", "nodes"), [("mpi", join), ("shared_memory", SeveralNodes)])
def test_what_is_under_way_has_ended_when_a_communicator_has_closed(rank_pool, backend, nodes):
    results = rank_pool.run(2, sum_that_nobody_waits_for, backend, nodes, seconds=SECONDS)
    assert [result.value for result in results] == [True, True], results


# A program that runs BODY in a session, and then ends as the command line does.
PROGRAM = """
import sys
from lucid.distributed import all_or_none, session
from lucid.errors import DataError, LucidError

def refuse():
    raise DataError("shard 3 is damaged")

try:
    with session() as communicator:
        {body}
        communicator.barrier()
except LucidError as error:
    sys.exit(error.exit_code)
print("left in order", flush=True)
sys.exit(75)
"""


@pytest.fixture(params=[["-m", "mpi4py"], []], ids=["mpi4py", "plain"])
def leave(request, run_ranks):
    """A function that runs PROGRAM, under both ways to launch."""

    def run(body, ranks=2):
        return run_ranks(ranks, *request.param, "-c", PROGRAM.format(body=body), seconds=SECONDS)

    return run


def test_a_planned_exit_is_quiet_and_keeps_its_code(leave):
    finished = leave("pass", ranks=3)
    assert finished.returncode == 75, finished.stdout
    assert finished.stdout.count("left in order") == 3
    assert "Abort" not in finished.stdout


def test_an_agreed_error_is_printed_once_and_aborts_nothing(leave):
    finished = leave("all_or_none(communicator, refuse if communicator.rank == 1 else int)")
    assert finished.returncode == DataError.exit_code, finished.stdout
    assert finished.stdout.count("lucid: shard 3 is damaged") == 1
    assert finished.stdout.count("shard 3 is damaged") == 1
    assert "Abort" not in finished.stdout
    assert "Traceback" not in finished.stdout


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("if communicator.rank == 1: refuse()", DataError.exit_code, "shard 3 is damaged"),
        ("if communicator.rank == 1: sys.exit(3)", 3, "sys.exit(3)"),
        ("if communicator.rank == 1: sys.exit()", 1, "sys.exit(None)"),
        ("if communicator.rank == 1: 1 / 0", 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_an_error_of_one_rank_ends_all(leave, body, code, message):
    finished = leave(body)
    assert finished.returncode == code, finished.stdout
    assert "rank 1 of 2 failed before the first step, all ranks end:" in finished.stdout
    assert message in finished.stdout


def test_on_a_single_rank_an_error_is_the_same_as_without_a_session(leave):
    finished = leave("1 / 0", ranks=1)
    assert finished.returncode == 1
    assert "ZeroDivisionError" in finished.stdout
    assert "all ranks end" not in finished.stdout
    assert "MPI_Abort" not in finished.stdout


# The product is one whose code, for AVX-512 too, lets the stack pointer point into scratch memory.
SIGNALS_DURING_PRODUCTS = """
import signal, sys, threading
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from lucid.cli import train as command
from lucid.kernels.products import linear_weight_gradient

gradient, x = (np.random.default_rng(1).standard_normal(shape, np.float32) for shape in ((280, 8192), (280, 128)))
target = SimpleNamespace(out=np.empty((8192, 128), np.float32), accumulate=False)
over = threading.Event()

def send():
    while not over.wait(2e-4):
        for number in (signal.SIGUSR1, signal.SIGHUP):
            signal.pthread_kill(threading.main_thread().ident, number)

def run(settings, group, stop):
    linear_weight_gradient(gradient, x, target)
    expected = target.out.copy()
    threading.Thread(target=send).start()
    try:
        for _ in range(100):
            linear_weight_gradient(gradient, x, target)
            assert np.array_equal(target.out, expected)
            for size in (100, 1000, 10_000):
                np.empty(size)  # the heap is looked at
    finally:
        over.set()
    assert stop.requested
    return 75

command.run = run
assert command.train(Path(sys.argv[1])) == 75
"""


@pytest.mark.skipif(not onednn.is_installed(), reason="oneDNN is not installed")
def test_signals_that_ask_for_a_stop_spoil_no_product_though_mpi_had_taken_them(run_ranks):
    recipe = str(REPOSITORY / "configs" / "small_cpu.yaml")
    finished = run_ranks(2, "-c", SIGNALS_DURING_PRODUCTS, recipe, OMP_NUM_THREADS="1", PYTHONFAULTHANDLER="")
    assert finished.returncode == 0, finished.stdout
