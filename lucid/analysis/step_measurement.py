"""Measures what `step_model` needs: some real steps of a run at two local batches, the update, sums, and the link.

Steps of two sizes tell the seconds of a FLOP from those of each micro-batch. Nothing is written, and the run that is
measured is not used afterwards: its weights are those of no run.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lucid.analysis.breakdown import COMMUNICATION, Clock, TimedCommunicator
from lucid.analysis.product_limit import encoder_product_rate
from lucid.analysis.step_model import GradientPart, Link, Measured, bytes_sent, ready_fraction
from lucid.backend import CPU, array_module
from lucid.distributed import Communicator, StopRequest, gather_texts, locate_ranks
from lucid.kernels import threads
from lucid.models.bert.flops import forward_flops
from lucid.optim import clip_scale, global_norm
from lucid.training.config import NEVER, RunConfig, only_steps
from lucid.training.estimates import masked_tokens
from lucid.training.micro_batches import LocalBatch
from lucid.training.setup import Run
from lucid.training.trainer import Trainer

# Steps before those that count: the first ones prepare products and fetch memory.
_WARM_UP_STEPS = 2
# Seconds for the steps of each size, and how many steps these may be.
_SECONDS, _FEWEST, _MOST = 12.0, 4, 24
# A step takes about this many times as long as its products.
_OVERHEAD = 1.4
# Repetitions of what is not a step.
_TURNS = 5
# Elements of an addition that is timed: far more than caches hold.
_ADDED = 2**22
# Of the spread of steps: percentiles, and the half-width of the middle half of a normal distribution in its deviations.
_ENDS, _QUARTILE = (10, 90), 0.6745


@dataclass(frozen=True)
class Timed:
    """A step of one rank: the FLOPs of its local batch, and the seconds in which it did not wait for other ranks."""

    flops: float
    seconds: float


@dataclass(frozen=True)
class Effort:
    """How a measurement is done: two local batches (samples), steps of each, and the seconds that all may take."""

    sizes: tuple[int, int]
    steps: tuple[int, int]
    seconds: float


def endless(config: RunConfig) -> RunConfig:
    """Return settings of a run that takes such steps without end, does nothing else, and starts from no checkpoint."""
    config = only_steps(config)
    train = config.train.model_copy(update={"steps": NEVER, "max_hours": None})
    no_start = {"initial_checkpoint": None, "initial_model": None, "branch_from": None}
    unused = {"run_folder": config.run_folder / "measurement"}
    return config.model_copy(update=no_start | unused | {"train": train})


def with_local_batch(config: RunConfig, local_batch: int, size: int) -> RunConfig:
    """Return settings for a measurement on `size` ranks that compute `local_batch` samples a step in one micro-batch.

    Each rank has an equal part. The exact reduction is measured by the sums of the fast one; the model adds its
    additions.
    """
    update = {"global_batch": local_batch * size, "micro_batch": None, "reduction": "fast", "balance": "length"}
    return config.model_copy(update={"train": config.train.model_copy(update=update)})


def effort(sizes: Sequence[int], flops: float, rate: float) -> Effort:
    """Return how to measure steps of local batches between the least and the largest of `sizes`.

    `flops` are a sample's, and `rate` is what a rank does of them in a second. The larger batch is reduced if few of
    its steps would take too long, and the smaller to a quarter of it if they are about the same.
    """
    of_sample = _OVERHEAD * flops / rate
    large = max(1, min(max(sizes), int(2 * _SECONDS / ((_WARM_UP_STEPS + _FEWEST) * of_sample))))
    small = min(min(sizes), large)
    if small > large / 2:
        small = max(1, large // 4)
    steps = [min(_MOST, max(_FEWEST, int(_SECONDS / (size * of_sample)))) for size in (small, large)]
    samples = small * (_WARM_UP_STEPS + steps[0]) + large * (_WARM_UP_STEPS + steps[1])
    return Effort((small, large), (steps[0], steps[1]), samples * of_sample)


def measure(run: Run, clock: Clock, plan: Effort) -> Measured:
    """Measure `run`, whose communicator `timed_communicator` made with `clock`. All ranks call this.

    All ranks get the same result.
    """
    communicator = run.communicator
    size, nodes = communicator.size, communicator.node_count
    update = _mean(communicator, _median(clock, lambda: _update(run)))
    if run.config.optimizer.sharded:
        update *= size
    steps = [
        [Timed(*values) for text in gather_texts(communicator, json.dumps(own)) for values in json.loads(text)]
        for own in (
            _steps(run, clock, local_batch, count) for local_batch, count in zip(plan.sizes, plan.steps, strict=True)
        )
    ]
    per_flop, fixed = fit([[replace(each, seconds=each.seconds - update) for each in part] for part in steps])
    ratios = [each.seconds / (update + fixed + per_flop * each.flops) for part in steps for each in part]
    low, high = np.percentile(ratios, _ENDS).tolist()
    lower, upper = np.percentile(ratios, (25, 75)).tolist()
    add, sums = _mean(communicator, _seconds_of_addition(run, clock)), _seconds_of_sums(run, clock)
    ranks_per_node = size // nodes
    return Measured(
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        threads=threads.count(),
        cores=_cores_of_node(communicator),
        seconds_per_flop=per_flop,
        micro_batch_seconds=fixed,
        update_seconds=update,
        add_seconds=add,
        node_sum_seconds=statistics.median(sums) if nodes == 1 and size > 1 else 0.0,
        crowding=_crowding(run),
        low=min(1.0, low),
        high=max(1.0, high),
        jitter=(upper - lower) / 2 / _QUARTILE,
        recompute=run.config.train.recompute,
        parts=gradient_parts(run),
        link=_link(run, sums, add) if nodes > 1 else None,
    )


def timed_communicator(communicator: Communicator, clock: Clock) -> Communicator:
    """Return a communicator whose waits `clock` adds up; on a GPU the host does not wait for sums, so as it is."""
    clock.running = True
    return communicator if communicator.device != CPU else TimedCommunicator(communicator, clock)


def fit(steps: Sequence[Sequence[Timed]]) -> tuple[float, float]:
    """Return the seconds of a FLOP and those of each step besides, from steps of a small and of a large local batch.

    The line goes through the median of both. Neither is negative.
    """
    (x0, y0), (x1, y1) = (
        (statistics.median(step.flops for step in part), statistics.median(step.seconds for step in part))
        for part in steps
    )
    if x1 <= x0 or y1 <= y0:
        return max(y0, y1, 0.0) / max(x0, x1), 0.0
    slope = (y1 - y0) / (x1 - x0)
    fixed = y0 - slope * x0
    return (slope, fixed) if fixed >= 0 else (max(y1, 0.0) / x1, 0.0)


def gradient_parts(run: Run) -> tuple[GradientPart, ...]:
    """Return where the gradient of each parameter lies, and when backward has it."""
    model, data = run.config.model, run.config.data
    masked = masked_tokens(run.config, run.config.masking_rate.mean)
    length = np.array([data.sequence_length])
    whole, body = (forward_flops(model, length, tokens).training for tokens in (masked, 0))
    return tuple(
        GradientPart(
            segment.start, segment.stop, ready_fraction(segment.name, model.num_hidden_layers, 1 - body / whole)
        )
        for segment in run.ddp.flat.segments
    )


def _steps(run: Run, clock: Clock, local_batch: int, count: int) -> list[tuple[float, float]]:
    """Take `count` steps, after some to warm up; return the fields of a `Timed` for each on this rank."""
    config = with_local_batch(run.config, local_batch, run.communicator.size)
    trainer, times = Trainer(replace(run, config=config)), []

    def timed(batches: Iterator[LocalBatch]) -> Iterator[LocalBatch]:
        before = next(batches, None)
        began = waited = 0.0
        while before is not None:
            yield before
            # The trainer fetches the next batch when a step begins.
            now, so_far = clock.now(), clock.parts[COMMUNICATION].seconds
            if began:
                times.append((now - began) - (so_far - waited))
            work.append(forward_flops(run.config.model, before.batch.sequence_lengths, before.masked_tokens).training)
            began, waited, before = now, so_far, next(batches, None)

    work: list[float] = []
    total = _WARM_UP_STEPS + count
    # One more, because a step ends when the next one begins.
    with trainer.batches(run.step + total + 1) as batches:
        trainer.loop(timed(batches), StopRequest())
    return list(zip(work, times, strict=False))[_WARM_UP_STEPS:]


def _update(run: Run) -> None:
    """Clip and update, by a rate of 0."""
    norm = global_norm(run.ddp.partition)
    run.optimizer.step(0.0, clip_scale(norm, run.config.optimizer.max_gradient_norm))


def _median(clock: Clock, action: Callable[[], None]) -> float:
    """Return the median seconds of `action`, without waits for other ranks, after one call to warm up."""
    times = []
    for _ in range(_TURNS + 1):
        began, waited = clock.now(), clock.parts[COMMUNICATION].seconds
        action()
        times.append(clock.now() - began - (clock.parts[COMMUNICATION].seconds - waited))
    return statistics.median(times[1:])


def _mean(communicator: Communicator, value: float) -> float:
    return communicator.all_reduce_scalar(value) / communicator.size


def _seconds_of_addition(run: Run, clock: Clock) -> float:
    """Return the seconds in which this rank adds two arrays of as many elements as there are gradients."""
    gradients = run.ddp.flat.gradients
    part = gradients[:_ADDED]
    other = array_module(part).zeros_like(part)

    def add() -> None:
        nonlocal other
        other += part

    return _median(clock, add) * len(gradients) / len(part)


def _seconds_of_sums(run: Run, clock: Clock) -> list[float]:
    """Return the seconds of some sums of all gradients over all ranks, of the slowest rank; nothing for one rank."""
    communicator, partition = run.communicator, run.ddp.partition
    times: list[float] = []
    run.ddp.flat.gradients[...] = 0  # so that repeated sums stay finite
    for _ in range(_TURNS + 1 if communicator.size > 1 else 0):
        communicator.barrier()
        began = clock.now()
        for work in [partition.sum(bucket) for bucket in range(len(partition.buckets))]:
            work.wait()
        times.append(max(map(float, gather_texts(communicator, str(clock.now() - began)))))
    return times[1:]


def _link(run: Run, sums: Sequence[float], add: float) -> Link:
    """Return the link between nodes, from sums over them. What nodes add meanwhile counts as the link's."""
    communicator, config = run.communicator, run.config
    latency = _latency(communicator)
    itemsize = 2 if config.distributed.wire_dtype == "bfloat16" else 4
    halves = 1 if config.optimizer.sharded else 2
    sent = bytes_sent(len(run.ddp.flat.gradients), communicator.node_count, itemsize) * halves / 2
    messages = latency * halves * len(run.ddp.partition.buckets)
    rates = [sent / max(seconds - messages, seconds / 2) for seconds in sums]
    rate = statistics.median(rates)
    return Link(rate, latency, (max(rates) - min(rates)) / 2 / rate)


def _latency(communicator: Communicator) -> float:
    """Return the seconds of a short message between the first two nodes. All ranks call this."""
    first_of_node = gather_texts(communicator, str(communicator.local_rank))
    pair = [rank for rank, text in enumerate(first_of_node) if text == "0"][:2]
    seconds = 0.0
    if communicator.rank in pair:
        peer = sum(pair) - communicator.rank
        outgoing, incoming, times = np.zeros(1), np.zeros(1), []
        for _ in range(10 * _TURNS):
            began = time.perf_counter()
            communicator.send_receive(outgoing, incoming, peer).wait()
            times.append(time.perf_counter() - began)
        seconds = statistics.median(times)
    return communicator.all_reduce_scalar(seconds) / len(pair)


def _crowding(run: Run) -> float:
    """Return how many times slower a rank's products are when all ranks compute them. All ranks call this."""
    communicator = run.communicator
    if communicator.size == communicator.node_count or communicator.device != CPU:
        return 1.0

    def rate() -> float:
        return encoder_product_rate(run.config, communicator.size, run.ddp.flat.values[:0])

    communicator.barrier()
    together = _mean(communicator, rate())
    alone = communicator.all_reduce_scalar(rate() if communicator.rank == 0 else 0.0)
    return max(1.0, alone / together)


def _cores_of_node(communicator: Communicator) -> int:
    """Return the cores of the first rank's node: ranks that are bound see only their own."""
    locations = locate_ranks(communicator, threads.count())
    of_host = [location for location in locations if location.host == locations[0].host]
    return sum({location.cpus: location.cores for location in of_host}.values())
