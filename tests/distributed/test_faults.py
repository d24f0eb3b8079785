"""A failure of one rank ends all ranks, soon and with a message, however they were launched."""

import os
import signal

import pytest

from lucid.distributed import StopRequest
from lucid.errors import DataError

SECONDS = 20

# Rank 1 runs FAILURE while the others are in a collective.
PROGRAM = """
import sys, threading
from lucid.distributed import abort_on_exception, connect
from lucid.errors import DataError

communicator = connect()
{guard}
communicator.barrier()
if communicator.rank == 1:
    {failure}
communicator.barrier()
"""

GUARD = "abort_on_exception(communicator)"
IN_A_THREAD = "thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()"
ABORT_FROM_A_THREAD = "threading.Thread(target=communicator.abort, args=(7,)).start()"

both_launch_paths = pytest.mark.parametrize("under_mpi4py", [["-m", "mpi4py"], []], ids=["mpi4py", "plain"])


@pytest.fixture
def run_failure(run_ranks):
    """A function that runs PROGRAM on three ranks."""

    def run(failure, launcher_options, guard=GUARD):
        program = PROGRAM.format(guard=guard, failure=failure)
        return run_ranks(3, *launcher_options, "-c", program, seconds=SECONDS)

    return run


@both_launch_paths
@pytest.mark.parametrize("failure", ["1 / 0", IN_A_THREAD], ids=["main-thread", "other-thread"])
def test_an_uncaught_exception_ends_all_ranks_with_its_traceback(run_failure, failure, under_mpi4py):
    finished = run_failure(failure, under_mpi4py)
    assert finished.returncode == 1, finished.stdout
    assert "rank 1 of 3 failed before the first step, all ranks end:" in finished.stdout
    assert "ZeroDivisionError: division by zero" in finished.stdout


@both_launch_paths
def test_an_error_for_the_user_ends_all_ranks_with_its_message_alone(run_failure, under_mpi4py):
    finished = run_failure("raise DataError('shard 3 is damaged')", under_mpi4py)
    assert finished.returncode == DataError.exit_code, finished.stdout
    assert "rank 1 of 3 failed before the first step, all ranks end:" in finished.stdout
    assert "shard 3 is damaged" in finished.stdout
    assert "Traceback" not in finished.stdout


@both_launch_paths
def test_an_interrupt_from_the_keyboard_ends_all_ranks(run_failure, under_mpi4py):
    finished = run_failure("raise KeyboardInterrupt", under_mpi4py)
    assert finished.returncode == 130, finished.stdout


@both_launch_paths
@pytest.mark.parametrize("failure", ["communicator.abort(7)", ABORT_FROM_A_THREAD], ids=["main-thread", "other-thread"])
def test_abort_ends_all_ranks_with_its_code(run_failure, failure, under_mpi4py):
    finished = run_failure(failure, under_mpi4py)
    assert finished.returncode == 7, finished.stdout


@pytest.mark.parametrize("guard", [GUARD, ""], ids=["guard", "no-guard"])
@pytest.mark.parametrize(("failure", "code"), [("sys.exit(3)", 3), ("1 / 0", 1)])
def test_under_mpi4py_sys_exit_and_exceptions_end_all_ranks(run_failure, failure, code, guard):
    finished = run_failure(failure, ["-m", "mpi4py"], guard)
    assert finished.returncode == code, finished.stdout


def test_a_killed_rank_ends_all(run_failure):
    finished = run_failure("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", [])
    assert finished.returncode == signal.SIGKILL, finished.stdout


def test_the_launcher_returns_the_exit_code_of_an_orderly_end(run_ranks):
    program = (
        "import sys; from lucid.distributed import connect; communicator = connect(); "
        "print('bye', flush=True); communicator.close(); sys.exit(75)"
    )
    finished = run_ranks(3, "-c", program, seconds=SECONDS)
    assert finished.returncode == 75, finished.stdout
    assert finished.stdout.count("bye") == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_asks_for_a_stop_any_number_of_times(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert stop.requested
    assert signal.getsignal(number) is before


def test_the_handlers_come_back_after_an_exception():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), StopRequest():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


STOPPING_PROGRAM = """
import os, signal
from lucid.distributed import StopRequest, connect

communicator = connect()
with StopRequest() as stop:
    communicator.barrier()
    if communicator.rank == 0:
        with open(f"/proc/{{os.getppid()}}/status") as proxy:
            launcher = next(int(line.split()[1]) for line in proxy if line.startswith("PPid"))
        os.kill(launcher, {signal})
    while communicator.all_reduce_scalar(stop.requested) < communicator.size:
        pass
print("saved", flush=True)
communicator.close()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_launcher_reaches_all_ranks(run_ranks, number):
    finished = run_ranks(2, "-c", STOPPING_PROGRAM.format(signal=int(number)), seconds=SECONDS)
    assert finished.stdout.count("saved") == 2, finished.stdout
