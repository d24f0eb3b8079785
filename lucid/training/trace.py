"""The trace of a few steps (`train.trace`): what each thread of each rank did when, in one file, on one clock.

The file has Chrome's trace format, which https://ui.perfetto.dev shows: a process is a rank, and its threads are the
rank's. See "Trace Event Format" (Google, 2016). The first rank writes it when the last of the steps is done.
"""

import gzip
import json
import platform
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lucid.distributed import Communicator
from lucid.distributed.clocks import HostClock, Reading, first_ranks_of_clocks, read_clocks
from lucid.errors import TrainingError
from lucid.files import written_aside
from lucid.training.log.window import Window
from lucid.training.micro_batches import LocalBatch, MicroBatches
from lucid.training.run_on_rank import Run
from lucid.training.spans import TRAINING_THREAD, Recorder, Span, recorded

T = TypeVar("T")


class Trace:
    """The trace of `run`, if its settings ask for one: within `armed`, as the trainer calls `before_step`."""

    def __init__(self, run: Run, micro_batches: MicroBatches, window: Window) -> None:
        self._run, self._micro_batches, self._window = run, micro_batches, window
        self._report: Callable[[str], None] | None = None
        self._recorder: Recorder | None = None
        # Ends what is recorded, and the span of a step.
        self._recording = self._step = ExitStack()
        self._step_span: Span | None = None
        self._began, self._first_ranks, self._readings = 0, list[int](), list[Reading]()

    @contextmanager
    def armed(self, report: Callable[[str], None]) -> Iterator[None]:
        """Within the block, trace the steps of `train.trace`. All ranks begin and end it together.

        The first rank's `report` hears where the trace is, or why it could not be written.
        """
        self._report = report if self._run.config.train.trace else None
        try:
            yield
            if self._recorder is not None:
                self._finish()
        finally:
            self._recording.close()
            self._report = self._recorder = None

    def before_step(self) -> None:
        """Begin or end the trace, if a step begins or ends it. All ranks call this before each step."""
        if self._report is None:
            return
        first, last = self._run.config.train.trace or (0, 0)
        following = self._run.step + 1
        if self._recorder is not None:
            self._step.close()
            if following > last:
                self._finish()
                return
        elif first <= following <= last:
            self._begin()
        if self._recorder is not None:
            span = self._recorder.span(f"step {following}", step=following)
            self._step_span = self._step.enter_context(span)

    def fetched(self, batches: Iterator[LocalBatch]) -> Iterator[LocalBatch]:
        """Yield the batches; how long the trainer waits for each one is traced."""
        while (batch := self._spanned("wait for a batch", lambda: next(batches, None))) is not None:
            yield batch

    def making(self, make_batch: Callable[[int], T]) -> Callable[[int], T]:
        """Return `make_batch`, which makes the batch of a step in a thread, so that its calls are traced."""
        return lambda step: self._spanned("make a batch", lambda: make_batch(step), step=step + 1)

    def _spanned(self, name: str, action: Callable[[], T], **arguments: Any) -> T:
        recorder = self._recorder
        if recorder is None:
            return action()
        with recorder.span(name, **arguments):
            return action()

    def _begin(self) -> None:
        run = self._run
        with self._window.paused():
            self._first_ranks = first_ranks_of_clocks(run.communicator)
            self._readings = read_clocks(run.communicator, self._first_ranks)
        recorder = Recorder()
        self._recording = ExitStack()
        self._recording.enter_context(recorded(run, self._micro_batches, recorder))
        self._step = self._recording.enter_context(ExitStack())
        self._recorder, self._began = recorder, run.step + 1

    def _finish(self) -> None:
        """End the trace, gather it on the first rank, and write it there, if it has a step. All ranks call this."""
        run, recorder = self._run, self._recorder
        assert recorder is not None
        assert self._report is not None
        self._recording.close()
        self._recorder = None
        if run.step < self._began:
            return
        if self._step_span is not None and self._step_span.arguments["step"] > run.step:
            # The message that ends the run came in place of this step.
            self._step_span.name, self._step_span.arguments = "end of the run", {}
        with self._window.paused():
            readings = read_clocks(run.communicator, self._first_ranks)
            parts = _gather(run.communicator, _packed(recorder))
            if not run.is_first:
                return
            clocks = [HostClock(*pair) for pair in zip(self._readings, readings, strict=True)]
            ranks = [RankPart(**json.loads(zlib.decompress(part))) for part in parts]
            path = run.config.run_folder / f"trace-{self._began}-{run.step}.json.gz"
            content = json.dumps(document(ranks, clocks, (self._began, run.step)), separators=(",", ":"))
            try:
                with written_aside(path, TrainingError) as file:
                    file.write(gzip.compress(content.encode()))
            except TrainingError as error:
                self._report(f"{error}; training goes on without this trace")
                return
            self._report(f"trace of steps {self._began} to {run.step}: {path}, for https://ui.perfetto.dev")


class RankPart(NamedTuple):
    """What the first rank gets from a rank.

    Spans are (name, thread, seconds of its clock at the begin and the end, is apart, arguments); `lost` counts others.
    """

    host: str
    lost: int
    spans: list[tuple[str, str, float, float, bool, dict[str, Any]]]


def _packed(recorder: Recorder) -> bytes:
    """Return this rank's `RankPart`. What goes on still ends now."""
    now = time.monotonic()
    spans = []
    for span in recorder.spans:
        arguments = span.arguments if span.ended is not None else {**span.arguments, "unfinished": True}
        ended = now if span.ended is None else span.ended
        spans.append((span.name, span.thread, span.began, ended, span.is_apart, arguments))
    part = RankPart(platform.node(), recorder.lost, spans)
    return zlib.compress(json.dumps(part._asdict()).encode())


def _gather(communicator: Communicator, content: bytes) -> list[bytes]:
    """Return on the first rank the `content` of all ranks, in their order. All ranks call this."""
    sizes = np.zeros(communicator.size, np.int64)
    sizes[communicator.rank] = len(content)
    communicator.all_reduce(sizes).wait()
    nothing, parts = np.zeros(0, np.uint8), [content]
    for rank in range(1, communicator.size):
        if communicator.rank == 0:
            incoming = np.zeros(int(sizes[rank]), np.uint8)
            communicator.send_receive(nothing, incoming, rank).wait()
            parts.append(incoming.tobytes())
        elif communicator.rank == rank:
            communicator.send_receive(np.frombuffer(content, np.uint8).copy(), nothing, 0).wait()
    return parts


def document(ranks: list[RankPart], clocks: list[HostClock], steps: tuple[int, int]) -> dict[str, Any]:
    """Return the trace as Chrome's JSON: the parts of all ranks, with the clock of each.

    Times are microseconds since the first span of any rank, on the first rank's clock.
    """
    origin = min(clock.on_first_rank(span[2]) for part, clock in zip(ranks, clocks, strict=True) for span in part.spans)
    events: list[dict[str, Any]] = []
    for rank, (part, clock) in enumerate(zip(ranks, clocks, strict=True)):
        events += _events_of(rank, part, clock, origin)
    of_ranks = [
        {
            "rank": rank,
            "host": part.host,
            "clock_offset_seconds": [clock.begin.offset, clock.end.offset],
            "clock_uncertainty_seconds": clock.uncertainty,
            "lost_spans": part.lost,
        }
        for rank, (part, clock) in enumerate(zip(ranks, clocks, strict=True))
    ]
    about = {
        "first_step": steps[0],
        "last_step": steps[1],
        "largest_clock_uncertainty_seconds": max(clock.uncertainty for clock in clocks),
        "ranks": of_ranks,
    }
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


def _events_of(rank: int, part: RankPart, clock: HostClock, origin: float) -> Iterator[dict[str, Any]]:
    """Yield the names of a rank and of its threads, then its spans."""
    threads = [TRAINING_THREAD, *sorted({span[1] for span in part.spans} - {TRAINING_THREAD})]
    label = f"clock offset {clock.begin.offset:.6f} s, +- {clock.uncertainty:.6f} s"
    yield _named("process_name", rank, 0, name=f"rank {rank} ({part.host})")
    yield _named("process_labels", rank, 0, labels=label)
    yield _named("process_sort_index", rank, 0, sort_index=rank)
    for number, thread in enumerate(threads):
        yield _named("thread_name", rank, number, name=thread)
        yield _named("thread_sort_index", rank, number, sort_index=number)
    for number, (name, thread, began, ended, is_apart, arguments) in enumerate(part.spans):
        start, stop = (round(1e6 * (clock.on_first_rank(each) - origin), 3) for each in (began, ended))
        event = {"name": name, "ts": start, "pid": rank, "tid": threads.index(thread)}
        if is_apart:
            event |= {"cat": "sum", "id2": {"local": hex(number)}}
            yield event | {"ph": "b", "args": arguments}
            yield event | {"ph": "e", "ts": stop}
        else:
            yield event | {"ph": "X", "dur": round(stop - start, 3), "args": arguments}


def _named(kind: str, rank: int, thread: int, **arguments: Any) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "ts": 0, "pid": rank, "tid": thread, "args": arguments}
