"""The exceptions that users see, and the exit codes. A message says what is wrong, where, and what to do about it.

The command line prints the message of a `LucidError`, without a traceback, and exits with its `exit_code`.
"""

import errno
import signal
from collections.abc import Iterable, Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """How a process ended, for schedulers and scripts."""

    FINISHED = 0
    FAILED = 1  # an error that is not the user's, or the run itself cannot continue
    REFUSED = 2  # a mistake in the settings or the input: starting again changes nothing
    STOPPED = 75  # stopped by a signal and saved: start again to continue
    HUNG = 86  # the watchdog ended a run in which ranks waited for a rank that did not come
    INTERRUPTED = 130  # from the keyboard; a run is saved, unless a second Ctrl-C came
    TERMINATED = 143  # by SIGTERM, a command that has nothing to save


# Characters of a line of a message.
_LONGEST_LINE = 1000


class LucidError(Exception):
    """An error that the user can correct; its message is for them."""

    exit_code: int = ExitCode.REFUSED
    # Whether every rank has this error, so that all can end in order and only the first prints it.
    agreed = False
    # Whether the message has been printed.
    reported = False

    def __str__(self) -> str:
        """Return the message. A line that cites a damaged file at great length is shortened in its middle."""
        lines = super().__str__().split("\n")
        return "\n".join(f"{line[:700]} ... {line[-250:]}" if len(line) > _LONGEST_LINE else line for line in lines)


class EndedBySignal(BaseException):
    """A signal ends this process in order: what is half done is given up, child processes end, a line says so."""

    def __init__(self, number: int) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"ended by {name}")
        self.exit_code = 128 + number


class ConfigError(LucidError):
    """A setting is unknown, of the wrong type, out of range, or does not fit another one."""


class DataError(LucidError):
    """A corpus, a tokenizer or a shard is missing, damaged, or not what the run asks for."""


class CheckpointError(LucidError):
    """A checkpoint or a model folder is missing, damaged, or of another model."""


class LaunchError(LucidError):
    """The processes were not started in the way that the run needs."""


class TrainingError(LucidError):
    """The run itself cannot continue."""

    exit_code = ExitCode.FAILED


def some(names: Sequence[str]) -> str:
    """Return the first three names, as a message lists them: `a, b, c and more`."""
    return f"{', '.join(names[:3])}{' and more' if len(names) > 3 else ''}"


def no_such_name(owner: str, name: str, names: Iterable[str]) -> AttributeError:
    """Return the error for a `name` that `owner` does not have: it lists those of its public `names` that are alike.

    If none is, it lists all.
    """
    import difflib  # few programs need it

    known = sorted(each for each in names if not each.startswith("_"))
    alike = difflib.get_close_matches(name, known, cutoff=0.7)
    has = f"did you mean {' or '.join(alike)}?" if alike else f"it has {', '.join(known)}"
    return AttributeError(f"{owner} has no {name!r}: {has}")


# The errors that only writing can cause.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EPIPE)


def fault_of_the_machine(error: BaseException) -> str | None:
    """Return a sentence about an error of the machine: memory, disk, or encoding of names. None for any other error."""
    if isinstance(error, MemoryError):
        return f"memory ran out ({error or 'no more can be had'}): lucid plan says what a run takes"
    if isinstance(error, UnicodeEncodeError):
        return f"the name {error.object!r} is not {error.encoding}, the encoding of this shell: set PYTHONUTF8=1"
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        return f"{error.filename or 'the output'} could not be written: {error.strerror}"
    return None
