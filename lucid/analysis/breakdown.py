"""Where the time of a training step goes: steps of a run in which kernels, communication and data are timed.

Timers replace what the trainer calls (`training/replacing.py`): kernels, collectives, and the iterator over batches, at
which steps begin and end. The trainer itself has none. The rest of the time is Python's.

On a GPU each timed call waits for the GPU, so that a timed step takes longer than an ordinary one.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np

from lucid import kernels
from lucid.analysis.product_limit import product_limit
from lucid.backend import CPU, Array, array_module, synchronise
from lucid.distributed import Communicator, StopRequest, Work
from lucid.kernels import Kernels
from lucid.models.bert.flops import forward_flops
from lucid.training.micro_batches import LocalBatch
from lucid.training.replacing import replace_until_closed
from lucid.training.run_on_rank import Run
from lucid.training.trainer import Trainer

KERNELS = tuple(name for name in dir(Kernels) if not name.startswith("_"))
COMMUNICATION, DATA = "communication", "data"
_TIMED = (*KERNELS, COMMUNICATION, DATA)
_COLLECTIVES = {
    "all_reduce", "reduce_scatter", "all_gather", "send_receive", "broadcast", "barrier", "all_reduce_scalar",
}  # fmt: skip
# How often a kernel reads or writes each of the `UpdateBuffers`: values, gradients and both moments.
_UPDATES = {"adamw": (2, 1, 2, 2), "lamb_moments": (1, 1, 2, 2), "lamb_update": (2, 0, 1, 1)}
# Steps before the timed ones: the first ones prepare products and fetch memory.
_WARM_UP_STEPS = 2


@dataclass
class TimedPart:
    """Seconds and calls of one kind of work, and the bytes of its argument and result arrays."""

    seconds: float = 0.0
    calls: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Breakdown:
    """The mean timed step, over all ranks; `plain_seconds` are the times of the steps in between, without timers.

    The seconds of `parts`, by name, and of `python` add up to `seconds`. FLOPs are those of a forward pass, in linear
    layers and in attention. FLOPs and tokens are sums over all ranks, and so is `product_limit`, in FLOP/s.
    """

    parts: dict[str, TimedPart]
    seconds: float
    plain_seconds: list[float]
    linear_flops: float
    attention_flops: float
    sequences: int
    tokens: float
    masked_tokens: float
    product_limit: float

    @property
    def python(self) -> float:
        """The seconds outside all parts."""
        return self.seconds - sum(part.seconds for part in self.parts.values())


class Clock:
    """Adds up timed calls while `running`, on the thread that made the clock: only that one delays the step."""

    def __init__(self, device: str = CPU) -> None:
        self.running = False
        self._device = device
        self.parts: defaultdict[str, TimedPart] = defaultdict(TimedPart)
        self._thread = threading.get_ident()
        # Seconds of the timed calls inside the present one.
        self._within = 0.0

    def now(self) -> float:
        """Wait for the device, and return the time in seconds."""
        if self._device != CPU:
            synchronise()
        return time.perf_counter()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` with a timer for `name`, which leaves out the timed calls inside."""

        def call(*arguments: Any, **options: Any) -> Any:
            if not self.running or threading.get_ident() != self._thread:
                return function(*arguments, **options)
            before, self._within = self._within, 0.0
            started = self.now()
            result = function(*arguments, **options)
            seconds = self.now() - started
            self._within, within = before + seconds, self._within
            part = self.parts[name]
            part.seconds += seconds - within
            part.calls += 1
            part.bytes += _bytes(name, arguments, result)
            return result

        return call


def _bytes(name: str, arguments: tuple[Any, ...], result: Any) -> int:
    """Return the bytes of all argument and result arrays of a call; 0 if it returned an argument."""
    if any(result is argument for argument in arguments):
        return 0
    results = result if isinstance(result, tuple) else (result,)
    arrays = (value for value in (*arguments, *results) if isinstance(value, array_module(value).ndarray))
    updated = zip(arguments[0], _UPDATES[name], strict=False) if name in _UPDATES else ()
    return sum(array.nbytes for array in arrays) + sum(array.nbytes * times for array, times in updated)


class _TimedWork:
    """A `Work` whose wait counts as communication."""

    def __init__(self, work: Work, clock: Clock) -> None:
        self.wait = clock.timed(COMMUNICATION, work.wait)


@contextmanager
def communication_timed(communicator: Communicator, clock: Clock) -> Iterator[None]:
    """Within the block, count collectives of `communicator`, and waits for them, as communication."""

    def timed(collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = collective(*arguments, **options)
            return _TimedWork(result, clock) if hasattr(result, "wait") else result

        return clock.timed(COMMUNICATION, call)

    with ExitStack() as stack:
        for name in _COLLECTIVES:
            replace_until_closed(stack, communicator, name, timed)
        yield


class StepClock(Clock):
    """Within its block, times kernels and data in every second step of `run`, whose trainer iterates over `steps`."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.communicator.device)
        self.seconds: list[float] = []
        self.plain_seconds: list[float] = []
        self._implementation, self._kernels = kernels.of(run.ddp.flat.values), ExitStack()
        self._steps, self._began = 0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._run(False)

    def steps(self, batches: Iterator[LocalBatch]) -> Iterator[LocalBatch]:
        """Yield the batches. The trainer fetches the next one when a step begins, which ends the step before."""
        fetch = self.timed(DATA, partial(next, batches, None))
        batch = next(batches, None)
        while batch is not None:
            yield batch
            self._begin_step()
            batch = fetch()

    def _begin_step(self) -> None:
        now = self.now()
        if self._steps > _WARM_UP_STEPS:
            (self.seconds if self.running else self.plain_seconds).append(now - self._began)
        self._run((self._steps - _WARM_UP_STEPS) % 2 == 1 and self._steps > _WARM_UP_STEPS)
        self._steps += 1
        self._began = self.now()

    def _run(self, running: bool) -> None:
        self.running = running
        self._kernels.close()
        for name in KERNELS if running else ():
            replace_until_closed(self._kernels, self._implementation, name, partial(self.timed, name))


def measure(run: Run, steps: int) -> Breakdown:
    """Take `steps` timed steps of `run`, and as many without timers.

    The settings must ask for no logs, evaluations or checkpoints in these steps. All ranks call this.
    """
    trainer, works = Trainer(run), []
    limit_before = product_limit(run)

    def counted(batches: Iterator[LocalBatch]) -> Iterator[LocalBatch]:
        for batch in batches:
            works.append(_work(run, batch))
            yield batch

    # One more step, because a step ends when the next one begins.
    last = run.step + _WARM_UP_STEPS + 2 * steps + 1
    with StepClock(run) as clock, communication_timed(run.communicator, clock), trainer.batches(last) as batches:
        trainer.loop(clock.steps(counted(batches)), StopRequest())
    # Other load on the machine can only lower the limit.
    limit = max(limit_before, product_limit(run))
    return _breakdown(trainer, clock, np.mean(works, axis=0), limit)


def _work(run: Run, batch: LocalBatch) -> tuple[int, int, int, int]:
    """Return the forward FLOPs of linear layers and of attention, and the numbers of tokens and of masked tokens."""
    lengths, masked_tokens = batch.batch.sequence_lengths, batch.masked_tokens
    flops = forward_flops(run.config.model, lengths, masked_tokens)
    return flops.linear, flops.attention, int(lengths.sum()), masked_tokens


def _breakdown(trainer: Trainer, clock: StepClock, work: Array, limit: float) -> Breakdown:
    """Return the means of all ranks' measurements."""
    communicator, steps = trainer.run.communicator, len(clock.seconds)
    parts = (
        np.array([(part.seconds, part.calls, part.bytes) for part in (clock.parts[name] for name in _TIMED)]) / steps
    )
    seconds = np.array([np.mean(clock.seconds), *clock.plain_seconds])
    for means in (parts, seconds):
        means /= communicator.size
    for sums in (parts, seconds, work):
        communicator.all_reduce(sums).wait()
    linear, attention, tokens, masked_tokens = work.tolist()
    return Breakdown(
        parts={name: TimedPart(*part) for name, part in zip(_TIMED, parts.tolist(), strict=True) if part[1]},
        seconds=float(seconds[0]),
        plain_seconds=seconds[1:].tolist(),
        linear_flops=linear,
        attention_flops=attention,
        sequences=trainer.settings.global_batch,
        tokens=tokens,
        masked_tokens=masked_tokens,
        product_limit=limit,
    )
