"""The option `--device` of commands."""

from enum import StrEnum


class Device(StrEnum):
    """What a command computes on."""

    CPU = "cpu"
    CUDA = "cuda"
