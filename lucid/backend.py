"""Which array library an array belongs to, and how arrays move between devices.

Everything above this file writes `xp = array_module(x)` and then one formula for NumPy and CuPy alike. This is
the only place, beside the CUDA kernels and the NCCL communicator, that imports CuPy, and it does so on first use.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType, TracebackType
from typing import Any, Self, TypeAlias, cast

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


def use_device(device: str) -> str:
    """Let this thread work on `device` from now on, on a GPU in a stream of its own; return its whole name.

    Raises `ConfigError` if `device` is not known or this machine has no such GPU.
    """
    if device == CPU:
        return CPU
    cupy = _cupy(device)
    index = _gpu_index(device)
    cupy.cuda.Device(index).use()
    # Not the default stream, which cannot be captured and waits for all others.
    cupy.cuda.Stream(non_blocking=True).use()
    return f"cuda:{index}"


def wait_for(device: str) -> None:
    """Block until `device` has done all that this thread gave it to do."""
    if device != CPU:
        _cupy(device).cuda.get_current_stream().synchronize()


class Readback:
    """The values of an array as they are now, on their way to host memory. Nothing waits until they are asked for."""

    def __init__(self, array: Array) -> None:
        xp, source = array_module(array), cast(Any, array)
        self._event: Any = None
        if xp is np:
            self._values = array.copy()
            return
        self._values = _pinned(array.nbytes).view(array.dtype).reshape(array.shape)
        source.get(out=self._values, blocking=False)
        self._event = xp.cuda.Event(disable_timing=True)
        self._event.record()

    def values(self) -> np.ndarray:
        """Return them, of the array's shape and dtype. Blocks until they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._values


class StaticArrays:
    """Arrays on a GPU whose values change from step to step, and whose addresses do not: `arrays`, by name.

    They lie in one piece, so that they are filled by one copy, out of one of two pieces of pinned host memory: nothing
    waits unless the copy before the last is still on its way.
    """

    _ALIGNMENT = 256

    def __init__(self, like: Mapping[str, np.ndarray], device: str) -> None:
        cupy, size = _cupy(device), 0
        places = {}
        for name, array in like.items():
            places[name] = slice(size, size + array.nbytes)
            size += -(-array.nbytes // self._ALIGNMENT) * self._ALIGNMENT
        self._on_device = cupy.empty(size, np.uint8)
        self._on_host = [(_pinned(size), cupy.cuda.Event(disable_timing=True)) for _ in range(2)]

        def views(buffer: Array) -> dict[str, Array]:
            return {name: buffer[places[name]].view(array.dtype).reshape(array.shape) for name, array in like.items()}

        self.arrays = views(self._on_device)
        self._views = [views(buffer) for buffer, _ in self._on_host]
        self._turn = 0

    def fill(self, values: Mapping[str, np.ndarray]) -> None:
        """Copy `values`, of the names, shapes and dtypes of `arrays`, there; what follows in the stream sees them."""
        self._turn = 1 - self._turn
        (buffer, copied), views = self._on_host[self._turn], self._views[self._turn]
        copied.synchronize()
        for name, view in views.items():
            view[...] = values[name]
        cupy = array_module(self._on_device)
        self._on_device.set(buffer, stream=cupy.cuda.get_current_stream())
        copied.record()


class Recording:
    """What this thread gives a GPU to do, once, to be done again: CUDA graphs, and what the host does between them.

    Inside the block nothing is done before `outside`, or the end: it is captured, and then launched. Arrays that are
    made in the block are used again by each `replay`, and so are those that it reads: what changes from one to the next
    has to lie in these.
    """

    def __init__(self) -> None:
        self._pieces: list[Callable[[], None]] = []
        self._stream: Any = None

    def __enter__(self) -> Self:
        self._stream = _cupy("cuda").cuda.get_current_stream()
        self._stream.begin_capture()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        graph = self._stream.end_capture()
        if error is None:
            self._launch(graph)

    def outside(self, action: Callable[[], None]) -> None:
        """Do `action` now, outside the graphs, and at this place in each replay."""
        self._launch(self._stream.end_capture())
        action()
        self._pieces.append(action)
        self._stream.begin_capture()

    def replay(self) -> None:
        """Do all of it again."""
        for piece in self._pieces:
            piece()

    def _launch(self, graph: Any) -> None:
        graph.launch()
        self._pieces.append(graph.launch)


class MemoryPool:
    """Memory of a GPU that only what happens in `allocating` gets, for recordings and what comes before them.

    One after the other may use the same memory, as each is over before the next begins.
    """

    def __init__(self, device: str) -> None:
        self._pool = _cupy(device).cuda.MemoryPool()

    @contextmanager
    def allocating(self) -> Iterator[None]:
        """Let this thread take new arrays from here inside the block."""
        with _cupy("cuda").cuda.using_allocator(self._pool.malloc):
            yield


def _pinned(size: int) -> np.ndarray:
    """Return `size` bytes of host memory that a GPU copies from, or to, while the host goes on."""
    cupy = _cupy("cuda")
    return np.frombuffer(cupy.cuda.alloc_pinned_memory(max(1, size)), np.uint8, size)


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
