"""The array library and device of an array, and copies between devices.

All other packages write `xp = array_module(x)` and then one formula for NumPy and CuPy. Only this file, the CUDA
kernels and the NCCL communicator import CuPy, on first use.
"""

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from lucid.errors import ConfigError

# A NumPy or a CuPy array. CuPy ships no types, so NumPy's stand for both.
Array: TypeAlias = np.ndarray

CPU = "cpu"

# The streams of `use_gpu`: CuPy holds no reference to them.
_streams: list[Any] = []


def array_module(array: Any) -> ModuleType:
    """Return the library (`numpy` or `cupy`) that `array` belongs to."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    return np


def special_functions(array: Any) -> ModuleType:
    """Return `scipy.special`, or CuPy's version of it, for `array`."""
    if array_module(array) is np:
        from scipy import special
    else:
        from cupyx.scipy import special
    return special


def device_of(array: Any) -> str:
    """Return `"cpu"` or `"cuda:N"`."""
    return CPU if array_module(array) is np else f"cuda:{array.device.id}"


def to_device(array: Any, device: str) -> Array:
    """Return `array` on `device` ("cpu", "cuda", "cuda:N"): itself if it is already there.

    Raises `ConfigError` if the device is unknown or this machine has no such GPU.
    """
    if device == CPU:
        return to_host(array)
    cupy = gpu_library(device)
    with cupy.cuda.Device(_gpu_index(device)):
        return cupy.asarray(array)


def to_host(array: Any) -> Array:
    """Return `array` as a NumPy array: itself if it is one, otherwise a copy in host memory."""
    if array_module(array) is np:
        return np.asarray(array)
    return array.get()


def address(array: Any) -> int:
    """Return the address of the first element of `array` in the memory of its device."""
    return array.ctypes.data if array_module(array) is np else array.data.ptr


def as_one(arrays: Sequence[Any]) -> Array | None:
    """Return adjacent arrays [N, ...] as one array [sum of N, ...], without a copy; None if they are not adjacent.

    Each array must begin where the one before it ends, in memory of the same owner.
    """
    first, stop = arrays[0], address(arrays[0])
    for array in arrays:
        is_next = address(array) == stop and array.flags.c_contiguous and _owner(array) is _owner(first)
        if not is_next or array.dtype != first.dtype or array.shape[1:] != first.shape[1:]:
            return None
        stop += array.nbytes
    shape = sum(map(len, arrays)), *first.shape[1:]
    return array_module(first).lib.stride_tricks.as_strided(first, shape, first.strides)


def _owner(array: Any) -> Any:
    """Return the array that owns the memory of this one, perhaps itself."""
    return array if array.base is None else array.base


def copy(source: Any, target: Any) -> None:
    """Copy `source` into `target`, each in host or GPU memory, C-contiguous, with the same shape and dtype.

    On return a copy to the host is complete, and a copy to a GPU has read any source that is not page-locked.
    """
    if array_module(target) is np and array_module(source) is not np:
        source.get(out=target)
    elif array_module(target) is not np and array_module(source) is np:
        target.set(source)
    else:
        target[...] = source


def zeros(count: int, dtype: Any, device: str) -> Array:
    """Return zeros [count] on `device`. Raises `ConfigError` as `to_device` does."""
    if device == CPU:
        return np.zeros(count, dtype)
    cupy = gpu_library(device)
    with cupy.cuda.Device(_gpu_index(device)):
        return cupy.zeros(count, dtype)


def page_locked(size: int) -> Array:
    """Return `size` bytes (uint8) of uninitialised host memory that a GPU can copy from and to directly."""
    cupy = gpu_library()
    return np.frombuffer(cupy.cuda.alloc_pinned_memory(max(size, 1)), np.uint8, size)


def synchronise() -> None:
    """Block until all work in the current stream is done."""
    sys.modules["cupy"].cuda.get_current_stream().synchronize()


def use_gpu(device: str, number: int) -> str:
    """Make this thread compute on one GPU, in a stream of its own, and return the GPU as "cuda:N".

    "cuda" is GPU `number` of the visible ones, modulo their count. Raises `ConfigError` if there is none.
    """
    cupy = gpu_library(device)
    index = _gpu_index(device) if ":" in device else number % cupy.cuda.runtime.getDeviceCount()
    cupy.cuda.Device(index).use()
    # Not the default stream, which cannot be captured and waits for all others. The block is never left: after each
    # `with stream:` CuPy, which has some of its own, restores the stream of the outermost block, and forgets a `use`.
    _streams.append(cupy.cuda.Stream(non_blocking=True))
    _streams[-1].__enter__()
    return f"cuda:{index}"


@dataclass(frozen=True)
class GPUInfo:
    """A GPU: its name ("NVIDIA H200"), its address on the PCI bus, and the version of NCCL, "" if there is none."""

    name: str
    address: str
    nccl: str

    @classmethod
    def at(cls, device: str) -> "GPUInfo":
        """Return the facts about `device` ("cuda:N")."""
        cupy, index = gpu_library(device), _gpu_index(device)
        name = cupy.cuda.runtime.getDeviceProperties(index)["name"].decode()
        return cls(name, cupy.cuda.Device(index).pci_bus_id, _nccl_version())


def return_freed_memory() -> None:
    """Return freed memory from the C library (only glibc keeps it) to the operating system.

    Call this after a start-up that needed more memory than the training steps will.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def gpu_software() -> dict[str, str] | None:
    """Return the names and versions of this machine's GPUs and their software; None if CuPy is not installed.

    Raises `ConfigError` if CuPy finds no GPU. It creates no context on a GPU.
    """
    try:
        cupy = gpu_library()
    except ConfigError as error:
        if isinstance(error.__cause__, ImportError):
            return None
        raise
    runtime = cupy.cuda.runtime
    return {
        f"{runtime.getDeviceCount()} x {runtime.getDeviceProperties(0)['name'].decode()}": "",
        "CuPy": cupy.__version__,
        "CUDA": _dotted(runtime.runtimeGetVersion(), 1000, 10),
        "driver for CUDA": _dotted(runtime.driverGetVersion(), 1000, 10),
        "NCCL": _nccl_version() or "missing",
    }


def _nccl_version() -> str:
    # `cupy.cuda` has no such attribute before the import.
    from cupy.cuda import nccl

    return _dotted(nccl.get_version(), 10_000, 100) if nccl.available else ""


def _dotted(version: int, major: int, minor: int) -> str:
    return f"{version // major}.{version % major // minor}"


def _gpu_index(device: str) -> int:
    kind, _, index = device.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise ConfigError(f"device {device!r} is not known: use 'cpu', 'cuda' or 'cuda:N'")
    return int(index or 0)


def gpu_library(device: str = "cuda") -> ModuleType:
    """Return CuPy. Raises `ConfigError` if it is not installed, or this machine has no such GPU."""
    index = _gpu_index(device)
    try:
        import cupy
    except ImportError as error:
        raise ConfigError(
            f"device {device!r} needs CuPy, which is not installed: pip install 'lucid-bert[cuda13]' (or cuda12)"
        ) from error
    if not cupy.cuda.is_available() or index >= cupy.cuda.runtime.getDeviceCount():
        raise ConfigError(f"device {device!r} does not exist: no such GPU is visible to this process{_reason(cupy)}")
    return cupy


def _reason(cupy: ModuleType) -> str:
    """Return why CUDA finds no GPU, such as an old driver, in parentheses; "" if it finds some, or says nothing."""
    try:
        cupy.cuda.runtime.getDeviceCount()
    except RuntimeError as error:  # those of CUDA are such
        return f" ({error})"
    return ""
