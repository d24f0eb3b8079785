"""What a GPU does while the host goes on: copies in both directions, and work that is recorded once and then repeated.

CUDA does what it is given in the order of the current stream, which is this thread's own (`backend.use_gpu`). The host
waits in the methods that say so, and nowhere else.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self, cast

import numpy as np

from lucid.backend import Array, array_module, gpu_library, page_locked
from lucid.errors import TrainingError

# cudaErrorMemoryAllocation, which CuPy has no name for.
_OUT_OF_MEMORY = 2


# Memory that copies are on their way to, and what tells of each that it is over: who asked for one may have dropped it.
_awaited: deque[tuple[Any, Array]] = deque()


class Readback:
    """The numbers in an array as they are now, on their way to host memory: in `values` after `synchronize`."""

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
            return  # whoever launches what is captured has to keep the memory
        while _awaited and _awaited[0][0].done:
            _awaited.popleft()
        _awaited.append((self._event, self.values))

    def synchronize(self) -> None:
        """Block until they have arrived."""
        if self._event is not None:
            self._event.synchronize()


def _event(cupy: Any) -> Any:
    """Return an event that the host can wait for without keeping a core busy."""
    return cupy.cuda.Event(block=True, disable_timing=True)


class StaticArrays:
    """Arrays on a GPU whose values change from step to step, and whose addresses do not: `arrays`, by name.

    They lie in one piece, so that they are filled by one copy, out of one of two pieces of page-locked host memory.
    Each `fill` comes after a `synchronize`, which waits only if the copy before the last is still on its way.
    """

    _ALIGNMENT = 256

    def __init__(self, like: Mapping[str, np.ndarray], device: str) -> None:
        cupy, size = gpu_library(device), 0
        places = {}
        for name, array in like.items():
            places[name] = slice(size, size + array.nbytes)
            size += -(-array.nbytes // self._ALIGNMENT) * self._ALIGNMENT
        self._on_device = cupy.empty(size, np.uint8)
        self._on_host = [(page_locked(size), _event(cupy)) for _ in range(2)]

        def views(buffer: Array) -> dict[str, Array]:
            return {name: buffer[places[name]].view(array.dtype).reshape(array.shape) for name, array in like.items()}

        self.arrays = views(self._on_device)
        self._views = [views(buffer) for buffer, _ in self._on_host]
        self._turn = 0

    def synchronize(self) -> None:
        """Block until there is host memory for the next `fill`."""
        self._turn = 1 - self._turn
        _, copied = self._on_host[self._turn]
        copied.synchronize()

    def fill(self, values: Mapping[str, np.ndarray]) -> None:
        """Copy `values`, of the names, shapes and dtypes of `arrays`, there; what follows in the stream sees them."""
        (buffer, copied), views = self._on_host[self._turn], self._views[self._turn]
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
        self._stream = gpu_library().cuda.get_current_stream()
        self._stream.begin_capture()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._launch(self._stream.end_capture())
        else:
            with suppress(Exception):  # what has failed has made the capture invalid, and is what has to be told
                self._stream.end_capture()

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

    One after the other may use the same memory, as each is over before the next begins. To the pool it is free in
    between, though a recording writes to it by address whenever it is launched: so none of it is ever given back.
    """

    def __init__(self, device: str, size: int) -> None:
        """Take `size` bytes at once, for the current stream; what needs more gets more.

        Pieces that were taken one by one would never join, so that each that is larger than all before would be
        another one. Raises `TrainingError` if there is no room.
        """
        self._pool = gpu_library(device).cuda.MemoryPool(_take)
        # At a limit, which CuPy reads from the environment, a pool gives back what is free.
        self._pool.set_limit(size=0)
        self._pool.malloc(size)

    @contextmanager
    def allocating(self) -> Iterator[None]:
        """Let this thread take new arrays from here inside the block. Raises `TrainingError` if there is no room."""
        with gpu_library().cuda.using_allocator(self._pool.malloc):
            yield


def _take(size: int) -> Any:
    """Return new memory of the current GPU. Raises `TrainingError` if there is no room.

    CuPy's own error would make a pool give back all that is free in it, and try again.
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
