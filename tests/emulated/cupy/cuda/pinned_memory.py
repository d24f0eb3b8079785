"""Host memory that copies may go to and from while the host goes on."""

import ctypes
from typing import Any

import numpy as np

from cupy import _places

# What is allocated is rounded up to this, as in CuPy: who makes an array of it has to say of how many elements.
_UNIT = 512
_ALIGNMENT = 4096


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
    _places.pinned[pointer.ptr] = pointer
    return pointer
