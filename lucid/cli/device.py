"""The option `--device` of commands."""

from enum import StrEnum

from lucid.backend import CPU, use_gpu


class Device(StrEnum):
    """The device of a command."""

    CPU = "cpu"
    CUDA = "cuda"


def place_of(device: Device) -> str:
    """Return the device of a command that has one process. Raises `ConfigError` if there is no such GPU."""
    return CPU if device == Device.CPU else use_gpu(device, 0)
