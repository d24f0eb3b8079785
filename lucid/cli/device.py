"""The option `--device` of commands."""

from enum import StrEnum


class Device(StrEnum):
    """The device of a command."""

    CPU = "cpu"
    CUDA = "cuda"
