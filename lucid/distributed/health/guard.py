"""Ends all ranks when one fails or a signal asks for it, without a hang or a lost message.

A rank that leaves with an exception would wait for the others in MPI's finalisation, while they wait for it in a
collective. So an uncaught exception ends all ranks, in whichever way they were launched. A signal asks all ranks to
stop after the step in which all of them know of it: the trainer sums `StopRequest.requested` over ranks.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn, Protocol, Self

from lucid.distributed.communicators.announcement import is_first_rank
from lucid.distributed.communicators.communicator import Communicator
from lucid.errors import EndedBySignal, ExitCode, LucidError, fault_of_the_machine
from lucid.launch.processes import SECONDS_TO_FORWARD

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# A signal that the user had ignored at the start stays so: nohup ignores SIGHUP, and a shell SIGINT in the background.
# Parents of ranks ignore SIGUSR1 until here, so that it does not end a rank that is still starting.
_MAY_STAY_IGNORED = (signal.SIGINT, signal.SIGHUP)
# The terminal and a launcher may both send a rank SIGINT for one Ctrl-C.
_SECONDS_OF_ONE_PRESS = 0.5
_ON_INTERRUPT = "Ctrl-C: the run saves and stops after this step; a second Ctrl-C ends it at once"
# All ranks get a signal that comes from their launcher, and the first speaks for them.
_SECONDS_FOR_THE_FIRST_RANK = 1.0


def abort_on_exception(communicator: Communicator) -> None:
    """Make an uncaught exception in any thread of this process end all ranks.

    The message names the rank. A `LucidError` and `EndedBySignal` show their message and exit with their code, an
    interrupt from the keyboard with 130; any other exception shows its traceback and exits with 1. `sys.exit` does not
    call the hook: on a single rank it ends all ranks under `python -m mpi4py`, which the launchers use.
    """

    def main_thread(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        report_and_abort(communicator, error)

    def other_thread(failure: threading.ExceptHookArgs) -> None:
        if failure.exc_value is not None:
            report_and_abort(communicator, failure.exc_value)

    sys.excepthook = main_thread
    threading.excepthook = other_thread


def report_and_abort(communicator: Communicator, error: BaseException) -> NoReturn:
    """Print the error of this rank, and end all ranks with its exit code."""
    code, message = _exit_code_and_message(error)
    if isinstance(error, EndedBySignal):
        message = f"lucid: {message}"
        if communicator.rank > 0:
            time.sleep(_SECONDS_FOR_THE_FIRST_RANK)
    elif communicator.size > 1:
        status = communicator.status.current
        message = f"rank {communicator.rank} of {communicator.size} failed {status}, all ranks end:\n{message}"
    print_and_abort(communicator, message, code)


def print_and_abort(communicator: Communicator, message: str, code: int) -> NoReturn:
    """Print `message` from this rank, and end all ranks with exit code `code`. Any thread may call this."""
    try:
        sys.stdout.flush()
        sys.stderr.write(f"{message}\n")  # one write, so that the messages of ranks do not mix
        sys.stderr.flush()
        communicator.status.report_end()
        time.sleep(SECONDS_TO_FORWARD)
    finally:
        communicator.abort(code)


def _exit_code_and_message(error: BaseException) -> tuple[int, str]:
    if isinstance(error, LucidError | EndedBySignal):
        return error.exit_code, str(error)
    if isinstance(error, SystemExit):
        # A rank that leaves alone has failed, even with exit code 0.
        code = error.code if isinstance(error.code, int) and error.code else ExitCode.FAILED
        return code, f"sys.exit({error.code!r})"
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED, "interrupted"
    if fault := fault_of_the_machine(error):
        return ExitCode.FAILED, fault
    return ExitCode.FAILED, "".join(traceback.format_exception(error)).rstrip()


class Stop(Protocol):
    """Says whether training should stop; the trainer reads it before every step."""

    @property
    def requested(self) -> bool: ...


class StopRequest:
    """Within `with StopRequest() as stop:`, SIGTERM, SIGUSR1, SIGHUP and Ctrl-C set `stop.requested`.

    `stop.interrupted` says whether Ctrl-C did. A second Ctrl-C raises `EndedBySignal`. The other signals may arrive any
    number of times, and one that was blocked until now counts too. The end of the block restores the earlier handlers.
    Only the main thread may use this.
    """

    def __init__(self) -> None:
        self.requested = self.interrupted = False
        self._interrupted_at = 0.0
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            if number not in _MAY_STAY_IGNORED or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._request)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        return self

    def listen_again(self) -> None:
        """Take the signals back from libraries that have put handlers of their own in place since the block began.

        Starting MPI does: MPICH takes SIGUSR1, UCX SIGHUP. Their handlers call Python's, but on the stack of the thread
        that they interrupt. Products of oneDNN let its pointer point into scratch memory (`kernels.signal_stack`), and
        what lay there was written over.
        """
        for number in self._before:
            signal.signal(number, self._request)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if number != signal.SIGINT:
            return
        if not self.interrupted:
            self.interrupted, self._interrupted_at = True, time.monotonic()
            _say(_ON_INTERRUPT)
        elif time.monotonic() - self._interrupted_at > _SECONDS_OF_ONE_PRESS:
            raise EndedBySignal(number)


def _say(sentence: str) -> None:
    """Print a sentence from the first rank, in a signal handler: a stream may be in the middle of another print."""
    if is_first_rank():
        start = "\n" if os.isatty(2) else ""
        with suppress(OSError):
            os.write(2, f"{start}lucid: {sentence}\n".encode())
