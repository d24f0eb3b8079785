"""Which array library an array belongs to, and how arrays move between devices.

Everything above this file writes `xp = array_module(x)` and then one formula for NumPy and CuPy alike. This is
the only place, beside the CUDA kernels and the NCCL communicator, that imports CuPy, and it does so on first use.
"""

import ctypes
import sys
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from lucid.errors import ConfigError

# A NumPy or a CuPy array. CuPy ships no types of its own, so NumPy's stand for both.
Array: TypeAlias = np.ndarray

CPU = "cpu"


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
    """Return `array` on `device` ("cpu", "cuda", "cuda:N"), itself where it is there already.

    Raises `ConfigError` if `device` is not known or this machine has no such GPU.
    """
    if device == CPU:
        return to_host(array)
    cupy = _cupy(device)
    with cupy.cuda.Device(_gpu_index(device)):
        return cupy.asarray(array)


def to_host(array: Any) -> Array:
    """Return `array` as a NumPy array: itself if it is one, otherwise a copy in host memory."""
    if array_module(array) is np:
        return np.asarray(array)
    return array.get()


def return_freed_memory() -> None:
    """Have the C library give what was freed back to the system, where it has been told to keep it (glibc's alone).

    For after a start that took more than the steps to come can use again: pages that they do use are fetched once.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def gpu_software() -> dict[str, str] | None:
    """Return the names and versions of this machine's first GPU and what drives it; None where CuPy is not installed.

    Raises `ConfigError` if CuPy finds no GPU. It makes no context on a GPU.
    """
    try:
        cupy = _cupy("cuda")
    except ConfigError as error:
        if isinstance(error.__cause__, ImportError):
            return None
        raise
    runtime, nccl = cupy.cuda.runtime, cupy.cuda.nccl
    return {
        f"{runtime.getDeviceCount()} x {runtime.getDeviceProperties(0)['name'].decode()}": "",
        "CuPy": cupy.__version__,
        "CUDA": _dotted(runtime.runtimeGetVersion(), 1000, 10),
        "driver for CUDA": _dotted(runtime.driverGetVersion(), 1000, 10),
        "NCCL": _dotted(nccl.get_version(), 10_000, 100) if nccl.available else "missing",
    }


def _dotted(version: int, major: int, minor: int) -> str:
    return f"{version // major}.{version % major // minor}"


def _gpu_index(device: str) -> int:
    kind, _, index = device.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise ConfigError(f"device {device!r} is not known: use 'cpu', 'cuda' or 'cuda:N'")
    return int(index or 0)


def _cupy(device: str) -> ModuleType:
    index = _gpu_index(device)
    try:
        import cupy
    except ImportError as error:
        raise ConfigError(
            f"device {device!r} needs CuPy, which is not installed: pip install 'lucid[cuda13]' (or cuda12)"
        ) from error
    if not cupy.cuda.is_available() or index >= cupy.cuda.runtime.getDeviceCount():
        raise ConfigError(f"device {device!r} is not there: no such GPU is visible to this process")
    return cupy
