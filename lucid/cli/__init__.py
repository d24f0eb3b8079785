"""The command line: `lucid COMMAND ...`. One file or folder a command, which `commands` lists and `app` runs."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import NoReturn

from lucid.errors import EndedBySignal

_ENDING = (signal.SIGINT, signal.SIGTERM)
# The callback has returned by then.
_SECONDS_UNTIL_AGAIN = 0.1


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command (by default the process's arguments) and leave with its exit code.

    `lucid launch` is run without the other commands' libraries, so that it starts in milliseconds.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["--"]:  # it ends options, of which there are none before it
        del given[0]
    if given[:1] == ["launch"]:
        from lucid.cli import launch

        sys.exit(launch.run(given[1:]))
    if arguments is None:
        from lucid.launch.placement import take_share
        from lucid.launch.processes import end_with_launcher

        end_with_launcher()
        take_share(os.environ)
    with _ended_by_signals():
        from lucid.cli import app

        sys.exit(app.run(given))


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise `EndedBySignal` within the block, and end this process with a line."""
    before = {number: signal.getsignal(number) for number in _ENDING}
    hook, sys.unraisablehook = sys.unraisablehook, partial(_raise_again, sys.unraisablehook)
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # the user may have ignored it
            signal.signal(number, _end)
    try:
        yield
    except EndedBySignal as ended:
        from lucid.distributed.communicators.announcement import is_first_rank

        if is_first_rank():
            start = "\n" if sys.stderr.isatty() else ""  # the terminal has printed ^C
            print(f"{start}lucid: {ended}", file=sys.stderr)
        sys.exit(ended.exit_code)
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_again(otherwise: Callable[["sys.UnraisableHookArgs"], object], swallowed: "sys.UnraisableHookArgs") -> None:
    """Send a signal again whose `EndedBySignal` nobody could catch, because it came in a library's callback."""
    if not isinstance(swallowed.exc_value, EndedBySignal):
        otherwise(swallowed)
        return
    again = threading.Timer(_SECONDS_UNTIL_AGAIN, os.kill, (os.getpid(), swallowed.exc_value.exit_code - 128))
    again.daemon = True
    again.start()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise EndedBySignal(number)
