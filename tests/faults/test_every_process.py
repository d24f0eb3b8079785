"""Every process of a run, and every signal that ends or suspends one: nothing is left behind, and the exit code tells.

All processes are those of `lucid launch`, but the ranks only ask each other whether to stop, as the trainer does: so
they start in a fraction of a second.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import until
from launching import FEW_CORES, descendants

from lucid.errors import ExitCode
from lucid.launch.processes import Process

pytestmark = pytest.mark.long

SECONDS = 60
WATCHDOG_SECONDS = 10

SUPERVISOR = """
import sys
from lucid.launch import attempt

attempt.block_signals()
sys.exit(attempt.run(sys.argv[1:], {}, [], can_save=True).status)
"""
RANK = f"""
import sys, time
from pathlib import Path
from lucid.distributed import StopRequest, session, watched

with session() as communicator, StopRequest() as stop, watched(communicator, {WATCHDOG_SECONDS}):
    communicator.barrier()
    Path(sys.argv[1]).touch()
    print("ready", flush=True)
    while not communicator.all_reduce_scalar(stop.requested):
        Path(sys.argv[1]).touch()
        time.sleep(0.01)
sys.exit({ExitCode.STOPPED:d})
"""


class Run:
    """A run of two ranks, which touch a file as long as they go on."""

    def __init__(self, mpiexec: str, touched: Path) -> None:
        self.touched = touched
        ranks = ("-m", "lucid.launch.rank_parent", "-m", "mpi4py", "-c", RANK, str(touched))
        self.supervisor = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, mpiexec, "-n", "2", sys.executable, *ranks],
            env=os.environ | FEW_CORES,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.supervisor.stdout is not None
        said = ""
        while said.count("ready\n") < 2:
            line = self.supervisor.stdout.readline()
            assert line, f"the run ended too early:\n{said}"
            said += line
        self.processes = [self.supervisor.pid, *descendants(self.supervisor.pid)]

    def victim(self, name: str) -> int:
        chain = [self.supervisor.pid]
        for _ in VICTIMS[1:]:
            chain.append(_children(chain[-1])[0])
        return chain[VICTIMS.index(name)]

    def goes_on(self) -> None:
        """Wait until the ranks have done something."""
        for _ in range(2):  # the first may be from before
            before = self.touched.stat().st_mtime_ns
            until(lambda before=before: self.touched.stat().st_mtime_ns > before, SECONDS)

    def end(self) -> int:
        """Wait until no process is left, and return the exit code."""
        until(lambda: not any(map(Process.read, self.processes)), SECONDS)
        return self.supervisor.wait(SECONDS)

    def kill(self) -> None:
        for process in self.processes:
            if Process.read(process):
                os.kill(process, signal.SIGKILL)
        self.supervisor.communicate()


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.fixture
def run(mpiexec: str, tmp_path: Path) -> Iterator[Run]:
    started = Run(mpiexec, tmp_path / "touched")
    yield started
    started.kill()


# Each is a child of the one before it.
VICTIMS = ("supervisor", "mpiexec", "proxy", "rank's parent", "rank")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGSTOP)
# What becomes of the run: it goes on, or ends with one of these codes. "failed" is any other code, after which
# `lucid launch --restarts` starts the run again.
TABLE = {
    "supervisor": ("failed", 75, 130, 75, 75, "goes on"),
    "mpiexec": ("failed", 75, 75, "failed", 75, "goes on"),
    "proxy": ("failed", "goes on", "goes on", "failed", "goes on", "goes on"),
    "rank's parent": ("failed", 75, "goes on", 75, 75, "goes on"),
    "rank": ("failed", 75, 75, 75, 75, 86),
}
CASES = [
    pytest.param(victim, number, outcome, id=f"{number.name} to {victim}")
    for victim, outcomes in TABLE.items()
    for number, outcome in zip(SIGNALS, outcomes, strict=True)
]


@pytest.mark.parametrize(("victim", "number", "outcome"), CASES)
def test_a_signal_to_a_process_of_a_run_leaves_none_half(
    run: Run, victim: str, number: signal.Signals, outcome: int | str
) -> None:
    process = run.victim(victim)
    os.kill(process, number)
    if outcome == "goes on":
        run.goes_on()
        run.supervisor.send_signal(signal.SIGTERM)
        os.kill(process, signal.SIGCONT)
        outcome = ExitCode.STOPPED
    code = run.end()
    if outcome == "failed":
        assert code not in (ExitCode.FINISHED, ExitCode.REFUSED, ExitCode.STOPPED, ExitCode.INTERRUPTED)
    else:
        assert code == outcome
