"""Spans of a rank's time: what each of its threads does, for `trace.py`.

Nothing of a run records spans by itself. While they are wanted, the functions that a step calls are replaced
(`replacing.py`) by ones that also note when they begin and end.

On a GPU these are times of the host, which launches work and does not wait for it.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

from lucid.distributed.communicators.lockstep import Lockstep
from lucid.launch.rank_status import Wait
from lucid.training.checkpoints.store import Attempt
from lucid.training.log.norms_by_layer import layer_of
from lucid.training.micro_batches import MicroBatches
from lucid.training.replacing import replace_until_closed
from lucid.training.run_on_rank import Run
from lucid.training.step_message import ControlMessage

# The most spans that a rank keeps: about 10 MB.
MOST_SPANS = 100_000
# The thread that sends sums looks for work every half millisecond; shorter looks are not worth a span.
_SHORTEST_SUM = 2e-5

TRAINING_THREAD = "training"


class Span:
    """What a thread did from `began` to `ended` (`time.monotonic`); `ended` is None while it goes on.

    The spans of a thread nest, unless `is_apart`: a sum of a bucket goes on while its thread does other things.
    """

    __slots__ = ("arguments", "began", "ended", "is_apart", "name", "thread")

    def __init__(self, name: str, thread: str, began: float, ended: float | None, **arguments: Any) -> None:
        self.name, self.thread, self.began, self.ended = name, thread, began, ended
        self.arguments = arguments
        self.is_apart = False


class Recorder:
    """Records spans of all threads of this process. The thread that makes it trains."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        # Spans beyond `MOST_SPANS`.
        self.lost = 0
        self.training_thread = threading.get_ident()

    def add(self, name: str, began: float, ended: float | None, **arguments: Any) -> Span:
        """Add a span of this thread and return it."""
        is_training = threading.get_ident() == self.training_thread
        thread = TRAINING_THREAD if is_training else threading.current_thread().name
        span = Span(name, thread, began, ended, **arguments)
        if len(self.spans) < MOST_SPANS:
            self.spans.append(span)
        else:
            self.lost += 1
        return span

    @contextmanager
    def span(self, name: str, **arguments: Any) -> Iterator[Span]:
        """Record the time of the block."""
        span = self.add(name, time.monotonic(), None, **arguments)
        try:
            yield span
        finally:
            span.ended = time.monotonic()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` with a span for each call."""

        def call(*arguments: Any, **options: Any) -> Any:
            with self.span(name):
                return function(*arguments, **options)

        return call


@contextmanager
def recorded(run: Run, micro_batches: MicroBatches, recorder: Recorder) -> Iterator[None]:
    """Within the block, record spans of the steps of `run`, whose micro-batches `micro_batches` runs."""
    status, bert = run.communicator.status, run.model.bert
    with ExitStack() as stack:
        replace = partial(replace_until_closed, stack)
        _record_gradients(replace, run, micro_batches, recorder)
        replace(bert.embeddings, "forward", partial(recorder.timed, "forward embeddings"))
        for number, layer in enumerate(bert.encoder.layer):
            replace(layer, "forward", partial(recorder.timed, f"forward encoder.layer.{number}"))
        replace(ControlMessage, "wait", partial(recorder.timed, "control message"))
        replace(Attempt, "save", partial(recorder.timed, "write checkpoint"))
        replace(Lockstep, "advance", partial(_sums_of_other_threads, recorder))
        replace(status, "phase", partial(_timed_phases, recorder))
        sums = _Buckets(recorder)
        replace(run.ddp.partition, "sum", sums.noting_starts)
        status.on_wait = sums.add_wait
        try:
            yield
        finally:
            status.on_wait = None


def _record_gradients(replace: Callable[..., None], run: Run, micro_batches: MicroBatches, recorder: Recorder) -> None:
    """Record forward, backward, clipping and the update of a step."""
    backward = _Backward(recorder)
    numbers, gradients_ended = 0, 0.0

    def gradients(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        nonlocal numbers, gradients_ended
        numbers = 0
        with recorder.span("gradients"):
            result = function(*arguments, **options)
        gradients_ended = time.monotonic()
        return result

    def micro_batch(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        nonlocal numbers
        with recorder.span("micro-batch", number=numbers):
            result = function(*arguments, **options)
            backward.end()
        numbers += 1
        return result

    def losses(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with recorder.span("forward"):
            result = function(*arguments, **options)
        if run.model.training:
            backward.begin()
        return result

    def update(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        recorder.add("clipping", gradients_ended, time.monotonic())
        with recorder.span("optimizer"):
            return function(*arguments, **options)

    replace(micro_batches, "gradients", lambda function: partial(gradients, function))
    replace(micro_batches, "run", lambda function: partial(micro_batch, function))
    replace(run.model, "losses", lambda function: partial(losses, function))
    replace(run.optimizer, "step", lambda function: partial(update, function))
    flat = run.ddp.flat
    for segment, parameter in zip(flat.segments, flat.parameters, strict=True):
        ready = partial(backward.ready, layer_of(segment.name))
        replace(parameter, "run_ready_hooks", partial(_followed_by, ready))


def _followed_by(action: Callable[[], None], function: Callable[[], None]) -> Callable[[], None]:
    def both() -> None:
        function()
        action()

    return both


class _Backward:
    """Cuts backward into spans of layers: each ends with the layer's last gradient, and the next one begins there."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._layer = ""
        # When the pass, if one runs, and the present layer began, and when the layer's last gradient was ready.
        self._began: float | None = None
        self._layer_began = self._ready = 0.0

    def begin(self) -> None:
        self._began = self._layer_began = self._ready = time.monotonic()
        self._layer = ""

    def ready(self, layer: str) -> None:
        """Note that a parameter of `layer` has its gradient."""
        if layer != self._layer:
            self._end_layer()
            self._layer = layer
        self._ready = time.monotonic()

    def end(self) -> None:
        """End the pass, if one is running: a CUDA graph runs it without any of this."""
        if self._began is not None:
            self._end_layer()
            self._recorder.add("backward", self._began, time.monotonic())
            self._began = None

    def _end_layer(self) -> None:
        if self._layer and self._began is not None:
            self._recorder.add(f"backward {self._layer}", self._layer_began, self._ready)
            self._layer_began = self._ready


class _Buckets:
    """Records the waits of the training thread, and how long the sum of each bucket is under way."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._under_way: dict[int, float] = {}

    def noting_starts(self, function: Callable[[int], Any]) -> Callable[[int], Any]:
        """Return the partition's `sum`, which starts the sum of a bucket."""

        def start(bucket: int) -> Any:
            self._under_way[bucket] = time.monotonic()
            return function(bucket)

        return start

    def add_wait(self, wait: Wait) -> None:
        began = self._under_way.pop(wait.bucket, None)
        of_bucket = f"bucket {wait.bucket}"
        if began is not None:
            span = self._recorder.add(f"sum of {of_bucket}", began, wait.ended, bytes=wait.size)
            span.is_apart = True
        waits_for = of_bucket if wait.bucket >= 0 else wait.collective.removeprefix("wait for ")
        self._recorder.add(f"wait for {waits_for}", wait.began, wait.ended, collective=wait.collective, bytes=wait.size)


def _sums_of_other_threads(recorder: Recorder, advance: Callable[..., bool]) -> Callable[..., bool]:
    """Return `Lockstep.advance` with spans of the thread that goes on with sums while backward is running."""

    def call(lockstep: Lockstep) -> bool:
        began = time.monotonic()
        moved = advance(lockstep)
        ended = time.monotonic()
        if ended - began > _SHORTEST_SUM and threading.get_ident() != recorder.training_thread:
            recorder.add("sums over ranks", began, ended)
        return moved

    return call


def _timed_phases(
    recorder: Recorder, phase: Callable[[str], AbstractContextManager[None]]
) -> Callable[[str], AbstractContextManager[None]]:
    @contextmanager
    def timed(name: str) -> Iterator[None]:
        with recorder.span(name), phase(name):
            yield

    return timed
