"""GPUs that are not there: how many, which is current, and what they say of themselves.

EMULATED_GPUS is how many the machine has, 1 by default. As with real ones, CUDA_VISIBLE_DEVICES says which of them a
process sees.
"""

import os
import threading
from typing import Any

from cupy import _errors, _places, emulation

_MEMORY_BYTES = 80 * 2**30

_local = threading.local()


def _visible() -> list[int]:
    """Return the machine's numbers of the GPUs that this process sees."""
    there = range(int(os.environ.get("EMULATED_GPUS", "1")))
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return list(there)
    return [int(number) for number in chosen.split(",") if number.strip().isdigit() and int(number) in there]


def get_device_id() -> int:
    return getattr(_local, "id", 0)


def _set_device(number: int) -> None:
    if number not in range(len(_visible())):
        raise _errors.CUDARuntimeError(101, "cudaErrorInvalidDevice", "invalid device ordinal")
    _local.id = number


class Device:
    """A GPU by its number, the current one by default."""

    def __init__(self, device: Any = None) -> None:
        self.id = get_device_id() if device is None else int(device)
        self._before: list[int] = []

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __enter__(self) -> "Device":
        self._before.append(get_device_id())
        _set_device(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        _set_device(self._before.pop())

    def use(self) -> None:
        _set_device(self.id)

    def synchronize(self) -> None:
        from cupy.cuda import stream

        stream._wait_for_all("cudaDeviceSynchronize")

    @property
    def compute_capability(self) -> str:
        return "90"

    @property
    def pci_bus_id(self) -> str:
        return f"0000:{_visible()[self.id] + 1:02X}:00.0"

    @property
    def mem_info(self) -> tuple[int, int]:
        return _MEMORY_BYTES - _places.used_bytes(self.id), _MEMORY_BYTES

    @property
    def attributes(self) -> dict[str, int]:
        return {
            "MaxSharedMemoryPerBlock": 49_152,
            "MaxSharedMemoryPerBlockOptin": 232_448,
            "MaxThreadsPerBlock": 1024,
            "MultiProcessorCount": 132,
            "WarpSize": 32,
        }
