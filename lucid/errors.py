"""The exceptions that users see: each says what was wrong, where, and what to do about it.

The command line prints the message of a `LucidError`, without a traceback, and exits with its `exit_code`.
"""


class LucidError(Exception):
    """Something that the user can mend: the message is for them."""

    exit_code = 2
    # Whether every rank knows of it, so that all can end in order and one can speak for them.
    agreed = False
    # Whether the user has been told already.
    told = False


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

    exit_code = 1
