"""Ends all ranks when one fails or a signal asks for it, without a hang or a lost message.

A rank that leaves with an exception would wait for the others in MPI's finalisation, while they wait for it in a
collective. So an uncaught exception ends all ranks, in whichever way they were launched. A signal asks all ranks to
stop after the step in which all of them know of it: the trainer sums `StopRequest.requested` over ranks.
"""

import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn, Protocol, Self

from lucid.distributed.communicators.communicator import Communicator
from lucid.errors import ExitCode, LucidError, fault_of_the_machine

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# The launcher reads a rank's output from a pipe, and discards unread output when the abort arrives.
_SECONDS_TO_FORWARD = 0.2


def abort_on_exception(communicator: Communicator) -> None:
    """Make an uncaught exception in any thread of this process end all ranks.

    The message names the rank. A `LucidError` shows its message and exits with its code, an interrupt from the keyboard
    with 130; any other exception shows its traceback and exits with 1. `sys.exit` does not call the hook: on a single
    rank it ends all ranks under `python -m mpi4py`, which the launchers use.
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
    if communicator.size > 1:
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
        time.sleep(_SECONDS_TO_FORWARD)
    finally:
        communicator.abort(code)


def _exit_code_and_message(error: BaseException) -> tuple[int, str]:
    if isinstance(error, LucidError):
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
    """Within `with StopRequest() as stop:`, SIGTERM and SIGUSR1 set `stop.requested` instead of ending the process.

    Signals may arrive any number of times, and one that was blocked until now counts too. The end of the block restores
    the earlier handlers. Only the main thread may use this.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._request) for number in _SIGNALS}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
