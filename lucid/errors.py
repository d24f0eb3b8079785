"""The exceptions that users see: each says what was wrong, where, and what to do about it; and the exit codes.

The command line prints the message of a `LucidError`, without a traceback, and exits with its `exit_code`.
"""

import errno
from enum import IntEnum


class ExitCode(IntEnum):
    """How a process ended, for schedulers and scripts."""

    FINISHED = 0
    FAILED = 1  # an error that is not the user's, or the run itself cannot go on
    REFUSED = 2  # a mistake in the settings or the input: starting again changes nothing
    STOPPED = 75  # stopped by a signal and saved: start again to go on
    HUNG = 86  # the watchdog ended a run in which ranks waited for one that did not come
    INTERRUPTED = 130  # from the keyboard


class LucidError(Exception):
    """Something that the user can mend: the message is for them."""

    exit_code: int = ExitCode.REFUSED
    # Whether every rank knows of it, so that all can end in order and one can speak for them.
    agreed = False
    # Whether the user has been told already.
    reported = False


class ConfigError(LucidError):
    """A setting is unknown, of the wrong type, out of range, or does not fit another one."""


class DataError(LucidError):
    """A corpus, a tokenizer or a shard is missing, damaged, or not what the run asks for."""


class CheckpointError(LucidError):
    """A checkpoint or a model folder is missing, damaged, or of another model."""


class LaunchError(LucidError):
    """The processes were not started the way the run needs them."""


class TrainingError(LucidError):
    """The run itself cannot go on."""

    exit_code = ExitCode.FAILED


# What only writing fails with.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EPIPE)


def fault_of_the_machine(error: BaseException) -> str | None:
    """Return a sentence on an error that neither the user nor lucid has made: no memory, or an output that is full."""
    if isinstance(error, MemoryError):
        return f"memory ran out ({error or 'no more can be had'}): lucid plan says what a run takes"
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        return f"{error.filename or 'the output'} could not be written: {error.strerror}"
    return None
