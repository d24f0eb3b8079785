"""Which memory of the device, and which pinned memory of the host, lies at an address."""

import bisect
import ctypes
import weakref
from typing import Any

import numpy as np

from cupy import _errors, emulation

allocations: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()
pinned: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()


def used_bytes(device_id: int) -> int:
    return sum(memory.size for memory in list(allocations.values()) if memory.device_id == device_id)


def memory_at(address: int, size: int) -> Any:
    """Return the allocation that holds so many bytes at an address. Raises, as a GPU does, if there is none."""
    starts = sorted(allocations.keys())
    index = bisect.bisect_right(starts, address) - 1
    memory = allocations.get(starts[index]) if index >= 0 else None
    if memory is None or address + size > memory.ptr + memory.size:
        raise _errors.illegal_address(f"{size} bytes at {address:#x} are no memory of the device")
    return memory


def bytes_at(address: int, size: int) -> np.ndarray:
    """Return bytes of the host's or the device's memory."""
    if size == 0:
        return np.empty(0, np.uint8)
    return np.frombuffer((ctypes.c_char * size).from_address(address), np.uint8)


def is_pinned(address: int) -> bool:
    """Return whether an address lies in pinned memory."""
    return any(start <= address < start + memory.size() for start, memory in list(pinned.items()))


def refuse_pageable(address: int, stream: Any) -> None:
    """Raise if a graph would copy from or to memory that is not pinned, which the host may move."""
    if emulation.is_capturing(stream) and not is_pinned(address):
        emulation.stream_of(stream)._capture.is_valid = False
        raise _errors.unsupported("a copy between the device and host memory that is not pinned")
