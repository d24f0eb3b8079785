"""Host memory that copies may go to and from while the host goes on."""

import ctypes
import weakref
from typing import Any

import numpy as np

# What is allocated is rounded up to this, as in CuPy: who makes an array of it has to say of how many elements.
_UNIT = 512
_ALIGNMENT = 4096
_live: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()


class PinnedMemoryPointer:
    """Pinned memory. Objects are buffers as well, for `numpy.frombuffer`."""

    ptr: int
    mem: Any

    def size(self) -> int:
        return ctypes.sizeof(self)  # type: ignore[arg-type]


def alloc_pinned_memory(size: int) -> Any:
    rounded = max(1, -(-size // _UNIT)) * _UNIT
    room = np.full(rounded + _ALIGNMENT, 0xFF, np.uint8)
    kind = type("PinnedMemoryPointer", (PinnedMemoryPointer, ctypes.c_char * rounded), {})
    pointer = kind.from_buffer(room, -room.ctypes.data % _ALIGNMENT)
    pointer.ptr = ctypes.addressof(pointer)
    pointer.mem = pointer
    _live[pointer.ptr] = pointer
    return pointer


def is_pinned(address: int) -> bool:
    """Return whether an address lies in pinned memory."""
    return any(start <= address < start + memory.size() for start, memory in list(_live.items()))
