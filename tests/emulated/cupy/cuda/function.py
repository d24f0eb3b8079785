"""Modules of compiled kernels, and how a kernel is started: on guarded copies of what it is given."""

import ctypes
import mmap
import tempfile
import threading
from itertools import pairwise
from typing import Any

import numpy as np

from cupy import emulation
from cupy._array import ndarray
from cupy._errors import CUDADriverError
from cupy.cuda import memory

# Of arrays beyond this size a kernel gets no copy, but the array itself.
_MOST_GUARDED = 2**20
_MOST_SHARED = 232_448

_libc = ctypes.CDLL(None)
# The kernels' threads are static objects of their library.
_lock = threading.Lock()
_rooms: dict[int, list[Any]] = {}


class Module:
    """The kernels of one shared library."""

    def __init__(self) -> None:
        self._library: Any = None

    def load(self, cubin: bytes) -> None:
        # The loader knows a library by its name, which is new each time.
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            file.write(cubin)
            file.flush()
            try:
                self._library = ctypes.CDLL(file.name)
            except OSError as error:
                raise CUDADriverError(f"CUDA_ERROR_INVALID_IMAGE: device kernel image is invalid: {error}") from error

    def get_function(self, name: str) -> "Function":
        run = getattr(self._library, f"run_{name}", None)
        if run is None:
            raise CUDADriverError(f"CUDA_ERROR_NOT_FOUND: named symbol not found: {name}")
        return Function(self, name, run)


class Function:
    """A kernel."""

    def __init__(self, module: Module, name: str, run: Any) -> None:
        self.module, self.name, self._run = module, name, run
        self.max_dynamic_shared_size_bytes = 49_152

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared_mem: int = 0,
        stream: Any = None, enable_cooperative_groups: bool = False,
    ) -> None:  # fmt: skip
        shape = (*grid, 1, 1)[:3] + (*block, 1, 1)[:3]
        assert min(shape) > 0, f"{self.name}: a grid or block of size 0: {shape}"
        assert max(shape[1:3]) < 2**16, f"{self.name}: a grid's second and third size have 16 bits"
        assert np.prod(block) <= 1024, f"{self.name}: a block has 1,024 threads at most"
        assert shared_mem <= min(self.max_dynamic_shared_size_bytes, _MOST_SHARED), f"{self.name}: {shared_mem} bytes"
        types = " ".join(_type_of(argument) for argument in args).encode()
        given = [argument._own() if isinstance(argument, ndarray) else argument for argument in args]
        emulation.kernel_launches += 1
        used = [argument._memory for argument in args if isinstance(argument, ndarray)]
        emulation.submit(lambda: self._start(shape, types, given), stream, used)

    def _start(self, shape: tuple[int, ...], types: bytes, arguments: list[Any]) -> None:
        with _lock, _Guarded([each for each in arguments if isinstance(each, np.ndarray)]) as guarded:
            stored = [_stored(argument, guarded) for argument in arguments]
            pointers = (ctypes.c_void_p * len(stored))(*(value.ctypes.data for value in stored))
            self._run((ctypes.c_uint * 6)(*shape), pointers, types)


def _type_of(argument: Any) -> str:
    """The name of a parameter's type, as emulation.hpp has it; ? for any address."""
    if isinstance(argument, ndarray):
        return f"{argument.dtype.name}*"
    if isinstance(argument, memory.MemoryPointer) or (isinstance(argument, np.uint64) and argument == 0):
        return "?"
    assert isinstance(argument, np.generic), f"{argument!r} has no width that a parameter could have"
    return argument.dtype.name


def _stored(argument: Any, guarded: "_Guarded") -> np.ndarray:
    """An array of one element that holds what a parameter is: a number, or an address."""
    if isinstance(argument, np.ndarray):
        return np.array([guarded.address_of(argument)], np.uint64)
    if isinstance(argument, memory.MemoryPointer):
        return np.array([argument.ptr], np.uint64)
    return np.array([argument])


class _Guarded:
    """Copies of arrays, each in front of a page that cannot be touched: who reads or writes behind its end dies.

    Arrays that overlap in part, and large ones, are given to the kernel as they are.
    """

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self._copies: dict[int, tuple[np.ndarray, np.ndarray, Any]] = {}
        # Of several that begin at one place, the longest.
        self._arrays = {array.ctypes.data: array for array in sorted(arrays, key=lambda array: array.nbytes)}

    def __enter__(self) -> "_Guarded":
        bounds = sorted((address, address + array.nbytes) for address, array in self._arrays.items())
        apart = all(stop <= start for (_, stop), (start, _) in pairwise(bounds))
        for address, array in self._arrays.items():
            assert array.flags.c_contiguous, "a kernel is given an array that is not in C order"
            if apart and array.nbytes <= _MOST_GUARDED:
                self._copies[address] = self._copy(array)
        return self

    def __exit__(self, *_: object) -> None:
        for array, copy, room in self._copies.values():
            array.reshape(-1)[...] = copy
            _rooms.setdefault(len(room), []).append(room)

    def address_of(self, array: np.ndarray) -> int:
        found = self._copies.get(array.ctypes.data)
        return array.ctypes.data if found is None else found[1].ctypes.data

    @staticmethod
    def _copy(array: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any]:
        size = (array.nbytes // mmap.PAGESIZE + 2) * mmap.PAGESIZE
        free = _rooms.get(size)
        room = free.pop() if free else _room(size)
        last = size - mmap.PAGESIZE
        # As far behind a multiple of 16 bytes as the array, for threads may count on that.
        offset = last - array.nbytes - (last - array.nbytes - array.ctypes.data) % 16
        copy = np.frombuffer(room, array.dtype, array.size, offset)
        copy[...] = array.reshape(-1)
        return array, copy, room


def _room(size: int) -> Any:
    """Return pages, the last of which cannot be touched."""
    room = mmap.mmap(-1, size)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(room))
    assert _libc.mprotect(ctypes.c_void_p(begin + size - mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
    return room
