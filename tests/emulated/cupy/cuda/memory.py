"""Device memory, which is the host's: allocations, pointers into them, and pools, which only count."""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from cupy import _errors, _places, _transfers, emulation
from cupy.cuda import device

# As CuPy's pools have it.
_ALIGNMENT = 512

_local = threading.local()


class Memory:
    """An allocation. Arrays and pointers into it keep it; a graph that was captured on it does not."""

    def __init__(self, size: int) -> None:
        self.size, self.device_id = size, device.get_device_id()
        if _places.used_bytes(self.device_id) + size > device._MEMORY_BYTES:
            raise _errors.CUDARuntimeError(2, "cudaErrorMemoryAllocation", "out of memory")
        room = np.empty(size + _ALIGNMENT, np.uint8)
        begin = -room.ctypes.data % _ALIGNMENT
        self._bytes = room[begin : begin + size]
        self.ptr = room.ctypes.data + begin
        # The graph that it belongs to, if it was allocated while one was captured.
        self._capture = emulation.stream_of(None)._capture
        _places.allocations[self.ptr] = self

    @property
    def device(self) -> device.Device:
        return device.Device(self.device_id)


BaseMemory = Memory


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
        _transfers.to_device(
            _places.bytes_at(_address(mem), size), _places.bytes_at(self.ptr, size), stream, [self.mem]
        )

    def copy_to_host_async(self, mem: Any, size: int, stream: Any = None) -> None:
        _transfers.to_host(_places.bytes_at(self.ptr, size), _places.bytes_at(_address(mem), size), stream, [self.mem])

    def copy_from_device_async(self, src: "MemoryPointer", size: int, stream: Any = None) -> None:
        to, of = _places.bytes_at(self.ptr, size), _places.bytes_at(src.ptr, size)
        emulation.submit(lambda: np.copyto(to, of), stream, [self.mem, src.mem])

    def memset_async(self, value: int, size: int, stream: Any = None) -> None:
        place = _places.bytes_at(self.ptr, size)
        emulation.submit(lambda: place.fill(value), stream, [self.mem])


def _address(mem: Any) -> int:
    return mem if isinstance(mem, int) else mem.ptr if hasattr(mem, "ptr") else mem.value


class OutOfMemoryError(MemoryError):
    """A pool may hand out no more."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        end = f", limit set to: {limit:,} bytes" if limit else ""
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes{end}).")


class MemoryPool:
    """Hands out memory up to its limit, if it has one, and knows how much of it is in use."""

    def __init__(self, allocator: Callable[[int], MemoryPointer] | None = None) -> None:
        self._allocator = allocator or (lambda size: MemoryPointer(Memory(size), 0))
        self._handed_out: weakref.WeakSet[Memory] = weakref.WeakSet()
        self._limit = 0

    def malloc(self, size: int) -> MemoryPointer:
        if self._limit and self.used_bytes() + size > self._limit:
            raise OutOfMemoryError(size, self.used_bytes(), self._limit)
        pointer = self._allocator(size)
        self._handed_out.add(pointer.mem)
        return pointer

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
        self._limit = size or int((fraction or 0) * device._MEMORY_BYTES)


_default_pool = MemoryPool()
_allocator: Callable[[int], MemoryPointer] = _default_pool.malloc


def alloc(size: int) -> MemoryPointer:
    """Allocate by the thread's allocator, or else the process's."""
    return (getattr(_local, "allocator", None) or _allocator)(size)


def get_allocator() -> Callable[[int], MemoryPointer]:
    return getattr(_local, "allocator", None) or _allocator


def set_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> None:
    global _allocator
    _allocator = MemoryPool().malloc if allocator is None else allocator
