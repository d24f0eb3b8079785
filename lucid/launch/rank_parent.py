"""The parent of a rank, which can still speak when the rank is gone.

    mpiexec -n 4 python -P -m lucid.launch.rank_parent [--bind] [--gpus] -P -m mpi4py -m lucid train run.yaml

A rank that is killed, or that a library ends with `_exit`, says nothing, and mpiexec knows neither its step nor the
collective it was in. So a parent process starts the rank as its child, and lends it a page of memory for its status
(`rank_status`). If the rank ends without a word, its parent says in one line which rank it was, what happened, and
where. It exits with the rank's exit code, and mpiexec ends the other ranks.

Before it starts the rank, the parent gives it cores (`--bind`) or a GPU (`--gpus`), as `placement` says.

The parent keeps mpiexec's connection to the rank open. Otherwise mpiexec would see it break, and end all ranks before
the parent has spoken. Each rank's start waits for this module, so it imports little.
"""

import itertools
import os
import signal
import struct
import sys
import time

from lucid.errors import ExitCode, LaunchError
from lucid.launch import placement
from lucid.launch.processes import SECONDS_TO_FORWARD, bound_to_this_process, end_all, end_with_launcher
from lucid.launch.rank_status import PAGE_BYTES, RankStatus, lend_page

_PLACEMENT = ("--bind", "--gpus")
# Variables in which MPICH's launcher, Open MPI's and srun say which rank a process is.
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")

# A terminal and launchers send SIGINT to the rank too; the parent only has to survive it. SIGHUP may be ignored, as by
# nohup, and stays so.
_PASSED_ON = {signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    _PASSED_ON.remove(signal.SIGHUP)
_AWAITED = _PASSED_ON | {signal.SIGINT, signal.SIGCHLD}

# Time for the rank that speaks for its host to end all ranks.
_SECONDS_TO_SPEAK = 5.0


def main() -> int:
    """Run Python with this process's arguments as the rank; return its exit code, or 128 + N after signal N."""
    arguments = sys.argv[1:]
    options = set(itertools.takewhile(_PLACEMENT.__contains__, arguments))
    if options and not _place(options):
        end_all(ExitCode.REFUSED)
        return ExitCode.REFUSED
    kills_before = _out_of_memory_kills()
    page = lend_page()
    child = _start([sys.executable, *arguments[len(options) :]])
    end_with_launcher()  # and so does the child
    code = os.waitstatus_to_exitcode(_wait(child))  # negative after a signal
    message = _last_words(code, page, out_of_memory=_out_of_memory_kills() > kills_before)
    if message:
        os.write(2, message.encode())  # in one write, so that messages of ranks do not mix
        time.sleep(SECONDS_TO_FORWARD)
    # A rank that has left the others alone has failed, even with exit code 0.
    code = 128 - code if code < 0 else code or int(message != "")
    if message:
        end_all(code)
    return code


def _place(options: set[str]) -> bool:
    """Place the rank; return whether that succeeded. One rank of the host says why not."""
    try:
        placement.place(os.environ, bind="--bind" in options, with_gpus="--gpus" in options)
    except LaunchError as refusal:
        if placement.LocalRank.announced(os.environ).rank == 0:
            os.write(2, f"lucid: {refusal}\n".encode())
            time.sleep(SECONDS_TO_FORWARD)
        else:
            time.sleep(_SECONDS_TO_SPEAK)
        return False
    return True


def _start(command: list[str]) -> int:
    """Start `command` as a child that ends when this process does, and return its id.

    This process blocks the signals in `_AWAITED` for `_wait`. Schedulers may send SIGUSR1, which asks for a stop, to
    the rank at any time. It must not end the rank: the kernel keeps it until `StopRequest` takes it, and afterwards the
    rank ignores it.
    """
    bind = bound_to_this_process()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    child = os.fork()
    if child:
        return child
    try:
        bind()
        if any(name in os.environ for name in _RANKS):
            # Launchers give the first rank alone an input that ends: others would wait for theirs for ever.
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask | {signal.SIGUSR1})  # Linux keeps what is blocked
        os.execv(command[0], command)
    finally:
        os._exit(1)


def _wait(child: int) -> int:
    """Wait for the end of `child` and return its status. Until then, pass signals on to it."""
    while True:
        number = signal.sigwait(_AWAITED)
        if number in _PASSED_ON:
            os.kill(child, number)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status


def _last_words(code: int, page: int | None, out_of_memory: bool) -> str:
    """Return a line on how the rank ended, or "" if it ended in order or has said why itself."""
    host = os.uname().nodename
    status = _read(page)
    if status is not None and status.ranks:
        if status.end_reported:
            return ""
        who, where = f"rank {status.rank} of {status.ranks} on {host}", str(status)
    elif code < 0:
        who, where = f"a rank on {host}", "before it had found the others" if status else "at an unknown step"
    else:
        # A command that needs no other ranks, such as --help, or a mistake that was found before they were needed.
        return ""
    return f"{who} {_what_happened(code, out_of_memory)} {where}, all ranks end\n"


def _what_happened(code: int, out_of_memory: bool) -> str:
    if code >= 0:
        return f"left with exit code {code} without a word"
    # Real-time signals have no names.
    name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
    if name == "SIGKILL" and out_of_memory:
        return "was killed by SIGKILL (probably for lack of memory: the kernel has killed a process for that meanwhile)"
    if name == "SIGBUS":
        return "was killed by SIGBUS (a mapped file was cut short, or the disk or the shared memory is full)"
    return f"was killed by {name}"


def _out_of_memory_kills() -> int:
    """Return how many processes of this machine the kernel has killed for lack of memory; 0 if it does not say."""
    try:
        with open("/proc/vmstat") as counters:
            return next((int(line.split()[1]) for line in counters if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0


def _read(page: int | None) -> RankStatus | None:
    """Return the status on the page, or None if it cannot be read."""
    try:
        return None if page is None else RankStatus.read(os.pread(page, PAGE_BYTES, 0))
    except (OSError, struct.error):
        return None


if __name__ == "__main__":
    sys.exit(main())
