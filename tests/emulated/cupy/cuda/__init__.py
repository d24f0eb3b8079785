"""CuPy's interface to the device, without what compiles kernels and what connects GPUs."""

from collections.abc import Callable as _Callable
from collections.abc import Iterator as _Iterator
from contextlib import contextmanager as _contextmanager

from cupy.cuda import device, driver, function, graph, memory, pinned_memory, runtime, stream
from cupy.cuda.device import Device, get_device_id
from cupy.cuda.function import Function, Module
from cupy.cuda.memory import (
    BaseMemory,
    Memory,
    MemoryPointer,
    MemoryPool,
    alloc,
    get_allocator,
    set_allocator,
)
from cupy.cuda.pinned_memory import PinnedMemoryPointer, alloc_pinned_memory
from cupy.cuda.stream import Event, ExternalStream, Stream, get_current_stream, get_elapsed_time


def is_available() -> bool:
    return runtime.getDeviceCount() > 0


@_contextmanager
def using_allocator(allocator: _Callable[[int], memory.MemoryPointer] | None = None) -> _Iterator[None]:
    before = getattr(memory._local, "allocator", None)
    memory._local.allocator = memory.MemoryPool().malloc if allocator is None else allocator
    try:
        yield
    finally:
        memory._local.allocator = before
