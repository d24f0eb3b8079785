"""No process of a run outlives the others: ranks end with their launcher, and nothing is left of an attempt.

A launcher starts ranks through a process on each host: MPICH's hydra_pmi_proxy, Open MPI's prted, SLURM's slurmstepd.
If that process is killed, nobody ends its ranks: they would go on training by themselves, while the launcher waits for
them. So each rank and its parent (`rank_parent`) watch the processes above them. Launchers notice when these ranks have
ended, and end those of other hosts.

The kernel offers PR_SET_PDEATHSIG for this. But it also ends a rank if only the *thread* that started the rank ends,
and launchers may start ranks from threads. It serves for the processes that lucid itself starts, from its main thread.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

SECONDS_BETWEEN_LOOKS = 0.5
# A launcher that ends the ranks may discard output of theirs that it has not read yet.
SECONDS_TO_FORWARD = 0.2
# A process that waits for a dead file server does not end before that answers. It computes nothing any more.
SECONDS_TO_DIE = 10.0

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>

# Launchers set one of these for their ranks, and not for their own processes. Inner launchers come before outer ones:
# mpiexec inside a step of SLURM inherits the variables of the step.
_SLURM = "SLURM_STEP_ID"
_VARIABLES_OF_RANKS = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", _SLURM)


@dataclass(frozen=True)
class Process:
    """A process. Its start (a number of ticks) distinguishes it from a later process with the same number."""

    number: int
    parent: int
    start: int

    @classmethod
    def read(cls, number: int) -> Self | None:
        """Return the process `number`, or None if it has ended. Raises `OSError` if the system does not say."""
        try:
            text = Path(f"/proc/{number}/stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name of the program, in parentheses, may contain anything.
        state, parent, *fields = text.rpartition(")")[2].split()
        return None if state in "ZX" else cls(number, int(parent), int(fields[17]))

    @property
    def has_ended(self) -> bool:
        """Whether it has certainly ended."""
        try:
            now = Process.read(self.number)
        except OSError:  # for example: too many open files
            return False
        return _has_gone(self.number) if now is None else now.start != self.start

    def has_variable(self, name: str) -> bool:
        """Return whether it was started with this variable. Processes of other users count as started without."""
        try:
            variables = Path(f"/proc/{self.number}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return any(variable.startswith(f"{name}=".encode()) for variable in variables)


def _has_gone(number: int) -> bool:
    """Return whether a process that `Process.read` does not find has ended, and is not only hidden by now."""
    try:
        os.kill(number, 0)
    except PermissionError:
        return Path(f"/proc/{number}").exists()
    except ProcessLookupError:
        return True
    return True  # it has ended, and its parent does not know yet


def ancestors_of_rank() -> list[Process]:
    """Return the parent of this process, its parent, and so on up to the launcher's process, which is the last.

    Scripts and a `rank_parent` may stand between. The list is empty for a process that no launcher has started, and on
    a system that does not say.
    """
    variable = _variable_of_rank()
    found: list[Process] = []
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return []  # it has the numbers of another namespace
        ancestor = Process.read(os.getppid()) if variable else None
        while variable and ancestor:
            found.append(ancestor)
            ancestor = Process.read(ancestor.parent) if ancestor.has_variable(variable) else None
    except OSError:
        return []
    return found


@cache
def end_with_launcher() -> None:
    """Start a thread that kills this process, a rank or its parent, soon after the launcher's process has ended.

    It does the same if a process between the two ends, but not under SLURM: there a shell may end before the commands
    that it has started in the background, and SLURM itself ends a step whose task has been killed.
    """
    ancestors = ancestors_of_rank()
    watched = ancestors[-1:] if _variable_of_rank() == _SLURM else ancestors
    if not watched:
        return
    import threading

    threading.Thread(target=_kill_this_process_after, args=(watched,), name="launcher watch", daemon=True).start()


def _kill_this_process_after(watched: list[Process]) -> None:
    while not any(process.has_ended for process in watched):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGKILL)


def bound_to_this_process() -> Callable[[], None]:
    """Return a function for a child of this process, to be called right after the fork: both then end together."""
    parent, library = os.getpid(), ctypes.CDLL(None)

    def bind() -> None:
        if sys.platform == "linux":
            library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before the prctl
            os._exit(1)

    return bind


def end_all(code: int) -> None:
    """Ask MPICH's launcher to end all ranks with `code`, as MPI_Abort does.

    By itself it ends the ranks of other hosts only if a rank dies of a signal, not if a process such as this one exits.
    """
    if "MPI_LOCALNRANKS" in os.environ and "PMI_FD" in os.environ:
        with suppress(OSError):  # the launcher has gone, and the ranks with it
            os.write(int(os.environ["PMI_FD"]), f"cmd=abort exitcode={code}\n".encode())


def adopt_orphans() -> None:
    """Make this process the parent of all its descendants that lose theirs, for `end_children`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_children() -> None:
    """Kill all children of this process, adopted ones included, and wait for their end.

    A connection of ssh that other commands of the user share (ControlPersist) stays.
    """
    deadline = time.monotonic() + SECONDS_TO_DIE
    # The children of a child that is killed are the next ones.
    while (children := _children()) and time.monotonic() < deadline:
        for child in children:
            with suppress(OSError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)


def _children() -> list[int]:
    this = os.getpid()
    try:
        found = [int(number) for number in Path(f"/proc/{this}/task/{this}/children").read_text().split()]
    except OSError:
        return []  # the system does not say
    return [number for number in found if not _is_shared_connection(number)]


def _is_shared_connection(number: int) -> bool:
    try:
        title = Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return False
    return title.startswith(b"ssh: ") and b"[mux]" in title


def _variable_of_rank() -> str | None:
    return next((name for name in _VARIABLES_OF_RANKS if name in os.environ), None)
