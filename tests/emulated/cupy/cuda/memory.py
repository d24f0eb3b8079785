"""Device memory, which is the host's: allocations, pointers into them, and pools, which only count."""

import bisect
import ctypes
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from cupy import _errors, emulation
from cupy.cuda import device

# As CuPy's pools have it.
ALIGNMENT = 512

_local = threading.local()
_live: "weakref.WeakValueDictionary[int, Memory]" = weakref.WeakValueDictionary()


class Memory:
    """An allocation. Arrays and pointers into it keep it; a graph that was captured on it does not."""

    def __init__(self, size: int) -> None:
        self.size, self.device_id = size, device.get_device_id()
        room = np.empty(size + ALIGNMENT, np.uint8)
        begin = -room.ctypes.data % ALIGNMENT
        self.bytes = room[begin : begin + size]
        self.ptr = room.ctypes.data + begin
        # The graph that it belongs to, if it was allocated while one was captured.
        self.capture = emulation.stream_of(None).capture
        _live[self.ptr] = self

    @property
    def device(self) -> device.Device:
        return device.Device(self.device_id)


BaseMemory = Memory


def used_bytes(device_id: int) -> int:
    return sum(memory.size for memory in list(_live.values()) if memory.device_id == device_id)


def memory_at(address: int, size: int) -> Memory:
    """Return the allocation that holds so many bytes at an address. Raises, as a GPU does, if there is none."""
    starts = sorted(_live.keys())
    index = bisect.bisect_right(starts, address) - 1
    memory = _live.get(starts[index]) if index >= 0 else None
    if memory is None or address + size > memory.ptr + memory.size:
        raise _errors.illegal_address(f"{size} bytes at {address:#x} are no memory of the device")
    return memory


def bytes_at(address: int, size: int) -> np.ndarray:
    """Return bytes of the host's or the device's memory."""
    if size == 0:
        return np.empty(0, np.uint8)
    return np.frombuffer((ctypes.c_char * size).from_address(address), np.uint8)


def copy_bytes(to: int, of: int, size: int) -> Callable[[], None]:
    """Return what copies bytes."""

    def copy() -> None:
        ctypes.memmove(to, of, size)

    return copy


class MemoryPointer:
    """A place in an allocation."""

    def __init__(self, mem: Memory, offset: int) -> None:
        self.mem, self.ptr = mem, mem.ptr + offset

    @property
    def device(self) -> device.Device:
        return self.mem.device

    @property
    def device_id(self) -> int:
        return self.mem.device_id

    def __add__(self, offset: int) -> "MemoryPointer":
        return MemoryPointer(self.mem, self.ptr + offset - self.mem.ptr)

    def __int__(self) -> int:
        return self.ptr

    def copy_from_host_async(self, mem: Any, size: int, stream: Any = None) -> None:
        host = _address(mem)
        refuse_pageable(host, stream)
        emulation.submit(copy_bytes(self.ptr, host, size), stream, [self.mem])

    def copy_to_host_async(self, mem: Any, size: int, stream: Any = None) -> None:
        host = _address(mem)
        refuse_pageable(host, stream)
        emulation.submit(copy_bytes(host, self.ptr, size), stream, [self.mem])

    def copy_from_device_async(self, src: "MemoryPointer", size: int, stream: Any = None) -> None:
        emulation.submit(copy_bytes(self.ptr, src.ptr, size), stream, [self.mem, src.mem])

    def memset_async(self, value: int, size: int, stream: Any = None) -> None:
        place = bytes_at(self.ptr, size)
        emulation.submit(lambda: place.fill(value), stream, [self.mem])


def _address(mem: Any) -> int:
    return mem if isinstance(mem, int) else mem.ptr if hasattr(mem, "ptr") else mem.value


def refuse_pageable(address: int, stream: Any) -> None:
    """A graph that copies from or to memory that the host may move is always a mistake."""
    from cupy.cuda import pinned_memory

    if emulation.is_capturing(stream) and not pinned_memory.is_pinned(address):
        emulation.stream_of(stream).capture.is_valid = False
        raise _errors.unsupported("a copy between the device and host memory that is not pinned")


class MemoryPool:
    """Hands out memory, and knows how much of it is in use."""

    def __init__(self, allocator: Any = None) -> None:
        self._handed_out: weakref.WeakSet[Memory] = weakref.WeakSet()
        self._limit = 0

    def malloc(self, size: int) -> MemoryPointer:
        memory = Memory(size)
        self._handed_out.add(memory)
        return MemoryPointer(memory, 0)

    def used_bytes(self) -> int:
        return sum(memory.size for memory in self._handed_out)

    def total_bytes(self) -> int:
        return self.used_bytes()

    def free_bytes(self) -> int:
        return 0

    def n_free_blocks(self) -> int:
        return 0

    def free_all_blocks(self, stream: Any = None) -> None:
        """Nothing is kept that is not in use."""

    def get_limit(self) -> int:
        return self._limit

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        self._limit = size or int((fraction or 0) * device.MEMORY_BYTES)


_default_pool = MemoryPool()
_allocator: Callable[[int], MemoryPointer] = _default_pool.malloc


def get_default_memory_pool() -> MemoryPool:
    return _default_pool


def alloc(size: int) -> MemoryPointer:
    """Allocate by the thread's allocator, or else the process's."""
    return (getattr(_local, "allocator", None) or _allocator)(size)


def get_allocator() -> Callable[[int], MemoryPointer]:
    return getattr(_local, "allocator", None) or _allocator


def set_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> None:
    global _allocator
    _allocator = MemoryPool().malloc if allocator is None else allocator


@contextmanager
def using_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> Iterator[None]:
    before = getattr(_local, "allocator", None)
    _local.allocator = MemoryPool().malloc if allocator is None else allocator
    try:
        yield
    finally:
        _local.allocator = before
