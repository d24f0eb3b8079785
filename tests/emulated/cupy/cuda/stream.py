"""Streams and events, and what they say to each other while one captures a graph."""

import itertools
import threading
import time
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from cupy import _errors, emulation
from cupy.cuda import device
from cupy.cuda.graph import Graph

_local = threading.local()
_addresses = itertools.count(0x5000, 0x10)
_streams: "weakref.WeakValueDictionary[int, Stream]" = weakref.WeakValueDictionary()
# Streams that have copies pending, which nobody may drop.
_busy: "set[Stream]" = set()


class Stream:
    """A stream of the current device. All that is submitted to it is done at once, or recorded while it captures."""

    null: "Stream"

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None
    ) -> None:
        self.device_id = -1 if null else device.get_device_id()
        self.ptr = 0 if null else next(_addresses)
        self.is_non_blocking, self.priority = non_blocking, priority or 0
        self._capture: emulation.Capture | None = None
        # Copies that the host has not waited for, numbered, and how many of each stream's come before what comes next.
        self._pending: list[tuple[int, Callable[[], None]]] = []
        self._seen: Counter[int] = Counter()
        _streams[self.ptr] = self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return hash(self.ptr)

    def __enter__(self) -> "Stream":
        _entered().append(self)
        return self.use()

    def __exit__(self, *_: object) -> None:
        """Go back to the stream of the block around this one: one made current by `use` since then is forgotten."""
        blocks = _entered()
        blocks.pop()
        _set_current(blocks[-1] if blocks else Stream.null)

    def use(self) -> "Stream":
        _set_current(self)
        return self

    @property
    def done(self) -> bool:
        if self._capture is not None:
            raise _errors.unsupported("cudaStreamQuery")
        self._settle()
        return True

    def synchronize(self) -> None:
        emulation.wait("cudaStreamSynchronize", self)

    def record(self, event: "Event | None" = None) -> "Event":
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        captured = event._capture
        if captured is None:
            if self._capture is not None and event._was_recorded:
                self._capture.is_valid = False
                raise _errors.isolated("a stream that captures waits for an event recorded before, or by another one")
            if event._was_recorded:
                self._seen |= event._seen
            return
        if not captured.is_open:
            raise _errors.captured_event("the graph it belongs to is captured already")
        if self._capture is None:
            self._capture = captured
        elif self._capture is not captured:
            raise _errors.isolated("two captures would be merged")
        own = captured.seen.setdefault(self, Counter())
        own |= event._seen
        # To wait is something that the stream has done.
        own[self.ptr] += 1

    def begin_capture(self, mode: int | None = None) -> None:
        if self.ptr == 0:
            raise _errors.unsupported("cudaStreamBeginCapture on the legacy stream")
        if self._capture is not None:
            raise _errors.invalid("the stream captures already")
        self._capture = emulation.Capture(self)

    def is_capturing(self) -> bool:
        return self._capture is not None

    def end_capture(self) -> Graph:
        capture = self._capture
        if capture is None:
            raise _errors.CUDARuntimeError(1, "cudaErrorIllegalState", "the stream does not capture")
        if capture.origin is not self:
            raise _errors.CUDARuntimeError(908, "cudaErrorStreamCaptureWrongThread", "another stream began the capture")
        unjoined = capture.unjoined()
        capture.is_open = False
        for stream in capture.seen:
            stream._capture = None
        if not capture.is_valid:
            raise _errors.CUDARuntimeError(901, "cudaErrorStreamCaptureInvalidated", "an operation before was refused")
        if unjoined:
            raise _errors.unjoined(f"the first stream has not waited for {unjoined}")
        return Graph(capture)

    def _leave_pending(self, settle: Callable[[], None]) -> None:
        """Let `settle` be called when the host waits."""
        self._seen[self.ptr] += 1
        self._pending.append((self._seen[self.ptr], settle))
        _busy.add(self)

    def _known(self) -> "Counter[int]":
        """How many of each stream's copies are done when all is that was submitted here."""
        known = self._seen.copy()
        if self.ptr == 0:
            for stream in list(_streams.values()):
                if not stream.is_non_blocking:
                    known |= stream._seen
        elif not self.is_non_blocking:
            known |= Stream.null._seen
        return known

    def _settle(self) -> None:
        """The host has waited for all that was submitted here."""
        _settle(self._known())


class ExternalStream(Stream):
    """A stream that somebody else has made, by its address."""

    def __init__(self, ptr: int, device_id: int = -1) -> None:
        raise NotImplementedError("the emulation has no streams but its own")


class Event:
    """A point in what was submitted to a stream."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self._has_timing, self._was_recorded = not disable_timing, False
        self._capture: emulation.Capture | None = None
        # What is done when the event is: of each stream that captures, or of each stream's pending copies.
        self._seen: Counter[int] = Counter()
        self._time = 0.0
        self.ptr = id(self)

    @property
    def done(self) -> bool:
        self._refuse_captured("cudaEventQuery")
        _settle(self._seen)
        return True

    def record(self, stream: Stream | None = None) -> None:
        stream = get_current_stream() if stream is None else stream
        self._was_recorded, self._capture, self._time = True, stream._capture, time.perf_counter()
        self._seen = stream._known() if stream._capture is None else stream._capture.seen[stream].copy()

    def synchronize(self) -> None:
        self._refuse_captured("cudaEventSynchronize")
        emulation.count("cudaEventSynchronize")
        _settle(self._seen)

    def _refuse_captured(self, what: str) -> None:
        if self._capture is not None:
            self._capture.is_valid = False
            raise _errors.captured_event(what)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    for event in (start_event, end_event):
        if not event._has_timing or not event._was_recorded:
            raise _errors.CUDARuntimeError(400, "cudaErrorInvalidResourceHandle", "an event without a time")
        event._refuse_captured("cudaEventElapsedTime")
    return 1000 * (end_event._time - start_event._time)


def get_current_stream(device_id: int = -1) -> Stream:
    number = device.get_device_id() if device_id < 0 else device_id
    return _currents().get(number, Stream.null)


def _set_current(stream: Stream) -> None:
    own = device.get_device_id()
    if stream.device_id not in (-1, own):
        raise RuntimeError(f"a stream of device {stream.device_id} cannot be current on device {own}")
    _currents()[own] = stream


def _entered() -> list[Stream]:
    """Return the streams of the blocks that this thread is in, the innermost last, on the current device."""
    if not hasattr(_local, "blocks"):
        _local.blocks = defaultdict(list)
    return _local.blocks[device.get_device_id()]


def _currents() -> dict[int, Stream]:
    if not hasattr(_local, "streams"):
        _local.streams = {}
    return _local.streams


def _at(address: int) -> Stream:
    """Return the stream of an address."""
    if address not in _streams:
        raise _errors.CUDARuntimeError(400, "cudaErrorInvalidResourceHandle", f"there is no stream {address:#x}")
    return _streams[address]


def _settle(known: "Counter[int]") -> None:
    """The host has waited until so many of each stream's copies were done."""
    for stream in list(_busy):
        done = [settle for number, settle in stream._pending if number <= known[stream.ptr]]
        stream._pending = stream._pending[len(done) :]
        if not stream._pending:
            _busy.discard(stream)
        for settle in done:
            settle()


def _wait_for_all(what: str) -> None:
    """Let the host wait for all streams. Raises while one captures, as CUDA does."""
    for stream in list(_streams.values()):
        if stream._capture is not None:
            stream._capture.is_valid = False
            raise _errors.unsupported(what)
    emulation.count(what)
    for stream in list(_busy):
        stream._settle()


Stream.null = Stream(null=True)
