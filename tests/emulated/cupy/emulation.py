"""What tests ask of the emulated GPU, and what is done now or recorded for a graph.

Device memory is host memory, and an operation is done as soon as it is submitted, in the order of the program. While a
stream captures, what would write into memory that is there already is not done, as on a GPU: it is recorded. An
operation that makes a new array is both, since the array's shape follows from it; what it holds until the graph is
launched means nothing.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cupy import _errors

# How often the host has waited for the device, and from which lines of whose code.
synchronisations = 0
callers: Counter[str] = Counter()
# How often a graph has been launched, a kernel started, and a product made by cuBLAS through CuPy.
graph_launches = 0
kernel_launches = 0
products = 0

_launched_on: Any = None

_HERE = str(Path(__file__).parent)


class Capture:
    """What is recorded between a stream's begin_capture and end_capture, by that stream and those that join it.

    Each operation of a stream is numbered. What a stream waits for is known by the numbers that it has seen of others.
    """

    def __init__(self, origin: Any) -> None:
        self.origin = origin
        self.operations: list[Callable[[], Any]] = []
        self.seen: dict[Any, Counter[int]] = {origin: Counter()}
        self.is_valid, self.is_open = True, True
        # Memory that was there before: whoever launches the graph has to keep it.
        self.used: dict[int, weakref.ref[Any]] = {}
        self.kept: list[Any] = []

    def add(self, stream: Any, operation: Callable[[], Any], memory: Iterable[Any] = ()) -> None:
        self.seen[stream][stream.ptr] += 1
        self.operations.append(operation)
        for each in memory:
            if each._capture is self:
                self.kept.append(each)
            else:
                self.used[id(each)] = weakref.ref(each)

    def unjoined(self) -> list[int]:
        """Return the streams that the origin has not waited for to the end."""
        seen = self.seen[self.origin]
        return [stream.ptr for stream, own in self.seen.items() if seen[stream.ptr] < own[stream.ptr]]


def submit(operation: Callable[[], Any], stream: Any = None, memory: Iterable[Any] = ()) -> None:
    """Do an operation that writes into memory that is there, or record it while the stream captures.

    `stream` is a stream, its address, or None for the current one. `memory` is what is used of the device's.
    """
    stream = stream_of(stream)
    if stream._capture is None:
        operation()
    else:
        stream._capture.add(stream, operation, memory)


def record(operation: Callable[[], Any], stream: Any = None) -> None:
    """Let the graph that the stream captures, if it does, repeat an operation that has been done already."""
    stream = stream_of(stream)
    if stream._capture is not None:
        stream._capture.add(stream, operation)


def is_capturing(stream: Any = None) -> bool:
    """Return whether a stream, the current one by default, records what is submitted to it."""
    return stream_of(stream)._capture is not None


def stream_of(stream: Any) -> Any:
    """Return the stream of an address; the current one if that is None."""
    from cupy.cuda import stream as streams

    if stream is None:
        return streams.get_current_stream()
    return streams._at(stream) if isinstance(stream, int) else stream


def wait(what: str, stream: Any = None) -> None:
    """Let the host wait for a stream, the current one by default. Raises while that captures, as CUDA does."""
    stream = stream_of(stream)
    if stream._capture is not None:
        stream._capture.is_valid = False
        raise _errors.unsupported(what)
    count(what)
    stream._settle()


def count(what: str) -> None:
    """Count that the host waits for the device."""
    global synchronisations
    synchronisations += 1
    callers[f"{caller()} {what}"] += 1


def caller() -> str:
    """Return the line that has called a function of this folder."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return "?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def running(stream: Any) -> Any:
    """Return the stream that an operation runs on: `stream`, or the one that the graph was launched on."""
    return _launched_on or stream_of(stream)


@contextmanager
def launched_on(stream: Any) -> Iterator[None]:
    """Let operations of a graph run on a stream."""
    global _launched_on
    before, _launched_on = _launched_on, stream
    try:
        yield
    finally:
        _launched_on = before
