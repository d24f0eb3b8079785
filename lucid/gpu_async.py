"""Work that a GPU does while the host goes on: copies in both directions, and kernels recorded once and then replayed.

CUDA runs all work in the order of the current stream, which belongs to this thread (`backend.use_gpu`). The host waits
only in the methods whose docstrings say so.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self, cast

import numpy as np

from lucid.backend import Array, array_module, gpu_library, page_locked
from lucid.errors import TrainingError

# cudaErrorMemoryAllocation, for which CuPy has no name.
_OUT_OF_MEMORY = 2

# The event and the host memory of each unfinished copy: the memory must outlive its `HostCopy`.
_unfinished: deque[tuple[Any, Array]] = deque()


class HostCopy:
    """An asynchronous copy of an array, as it is now, to host memory: `values` is filled after `synchronize`."""

    def __init__(self, array: Array) -> None:
        xp, source = array_module(array), cast(Any, array)
        self._event: Any = None
        if xp is np:
            self.values = array.copy()
            return
        self.values = page_locked(array.nbytes).view(array.dtype).reshape(array.shape)
        source.get(out=self.values, blocking=False)
        self._event = _event(xp)
        self._event.record()
        if xp.cuda.get_current_stream().is_capturing():
            return  # the caller that launches the graph keeps the memory
        while _unfinished and _unfinished[0][0].done:
            _unfinished.popleft()
        _unfinished.append((self._event, self.values))

    def synchronize(self) -> None:
        """Block until `values` is filled."""
        if self._event is not None:
            self._event.synchronize()


def _event(cupy: Any) -> Any:
    """Return an event for which the host waits without keeping a core busy."""
    return cupy.cuda.Event(block=True, disable_timing=True)


class StaticArrays:
    """Arrays on a GPU whose values change from step to step but whose addresses do not: `arrays`, by name.

    They share one allocation, so that one copy fills them, from one of two buffers in page-locked host memory. Call
    `synchronize` before each `fill`; it waits only while the last copy but one is unfinished.
    """

    _ALIGNMENT = 256

    def __init__(self, like: Mapping[str, np.ndarray], device: str) -> None:
        cupy, size = gpu_library(device), 0
        slices = {}
        for name, array in like.items():
            slices[name] = slice(size, size + array.nbytes)
            size += -(-array.nbytes // self._ALIGNMENT) * self._ALIGNMENT
        self._on_device = cupy.empty(size, np.uint8)
        self._on_host = [(page_locked(size), _event(cupy)) for _ in range(2)]

        def views(buffer: Array) -> dict[str, Array]:
            return {name: buffer[slices[name]].view(array.dtype).reshape(array.shape) for name, array in like.items()}

        self.arrays = views(self._on_device)
        self._views = [views(buffer) for buffer, _ in self._on_host]
        self._turn = 0

    def synchronize(self) -> None:
        """Block until the next `fill` has a free host buffer."""
        self._turn = 1 - self._turn
        _, copied = self._on_host[self._turn]
        copied.synchronize()

    def fill(self, values: Mapping[str, np.ndarray]) -> None:
        """Copy `values`, which have the names, shapes and dtypes of `arrays`; later work in the stream sees them."""
        (buffer, copied), views = self._on_host[self._turn], self._views[self._turn]
        for name, view in views.items():
            view[...] = values[name]
        cupy = array_module(self._on_device)
        self._on_device.set(buffer, stream=cupy.cuda.get_current_stream())
        copied.record()


class Recording:
    """A recording of the work that this thread gives a GPU: CUDA graphs, and the actions of the host between them.

    Inside the block work is captured; it runs when the block ends or calls `run_on_host`. Each `replay` reads and
    writes the same arrays as the recorded run: write changed inputs into these arrays before a replay.
    """

    def __init__(self) -> None:
        self._pieces: list[Callable[[], None]] = []
        self._stream: Any = None

    def __enter__(self) -> Self:
        self._stream = gpu_library().cuda.get_current_stream()
        self._stream.begin_capture()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._launch(self._stream.end_capture())
        else:
            with suppress(Exception):  # the error has invalidated the capture, and is the one to report
                self._stream.end_capture()

    def run_on_host(self, action: Callable[[], None]) -> None:
        """Call `action` now, outside the graphs, and at this point of each replay."""
        self._launch(self._stream.end_capture())
        action()
        self._pieces.append(action)
        self._stream.begin_capture()

    def replay(self) -> None:
        """Launch the graphs and call the host's actions again, in the recorded order."""
        for piece in self._pieces:
            piece()

    def _launch(self, graph: Any) -> None:
        graph.launch()
        self._pieces.append(graph.launch)


class MemoryPool:
    """GPU memory that is allocated only inside `allocating`: for recordings, and for the runs that precede them.

    Recordings may share memory, because each ends before the next begins. The pool regards the memory as free in
    between, but a launched recording writes to it by address. Therefore none of it ever returns to the device.
    """

    def __init__(self, device: str, size: int) -> None:
        """Allocate `size` bytes at once for the current stream; larger demands allocate more.

        Separate pieces would never merge: every request that exceeds all earlier ones would need a new piece. Raises
        `TrainingError` if the GPU has no room.
        """
        self._pool = gpu_library(device).cuda.MemoryPool(_take)
        # A pool that reaches its limit, which CuPy reads from the environment, returns free memory to the device.
        self._pool.set_limit(size=0)
        self._pool.malloc(size)

    @contextmanager
    def allocating(self) -> Iterator[None]:
        """Allocate this thread's new arrays here inside the block. Raises `TrainingError` if the GPU has no room."""
        with gpu_library().cuda.using_allocator(self._pool.malloc):
            yield


def _take(size: int) -> Any:
    """Return new memory of the current GPU. Raises `TrainingError` if the GPU has no room.

    CuPy's own error would make a pool return all its free memory and try again.
    """
    cupy = gpu_library()
    runtime, cuda = cupy.cuda.runtime, cupy.cuda
    for _ in range(2):
        try:
            return cuda.MemoryPointer(cuda.Memory(size), 0)
        except runtime.CUDARuntimeError as error:
            if error.status != _OUT_OF_MEMORY:
                raise
        cupy.get_default_memory_pool().free_all_blocks()
    free, total = runtime.memGetInfo()
    raise TrainingError(
        f"the GPU has no room for what a micro-batch computes: {size / 2**30:.2f} GiB more are needed, and "
        f"{free / 2**30:.2f} of {total / 2**30:.2f} GiB are free: lower train.micro_batch, or set train.recompute"
    )
