"""Measures what `step_model` needs: some real steps of a run at two local batches, the update, sums, and the link.

Steps of two sizes, and of samples of many lengths, tell the seconds of a FLOP from those of each micro-batch. Nothing
is written, and the run that is measured is not used afterwards: its weights are those of no run.
"""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np

from lucid.analysis.breakdown import COMMUNICATION, Clock, communication_timed
from lucid.analysis.prediction.link_measurement import measured_link
from lucid.analysis.prediction.link_model import GradientPart, ready_fraction
from lucid.analysis.prediction.step_model import Measured
from lucid.backend import CPU, array_module, to_host
from lucid.distributed import Communicator, StopRequest, find_drift, gather_texts, locate_ranks
from lucid.kernels import threads
from lucid.models.bert.flops import forward_flops
from lucid.optim import clip_scale, global_norm
from lucid.training.config import NEVER, RunConfig, only_steps
from lucid.training.estimates import masked_tokens
from lucid.training.evaluation import evaluate
from lucid.training.micro_batches import LocalBatch, labelled_rows
from lucid.training.run_on_rank import Run
from lucid.training.trainer import Trainer

# Steps before those that count: the first ones prepare products and fetch memory.
_WARM_UP_STEPS = 2
# Seconds for the steps of each size, and how many steps these may be.
_SECONDS, _FEWEST, _MOST = 12.0, 4, 24
# A step takes about this many times as long as its products.
_OVERHEAD = 1.4
# Repetitions of what is not a step, and of a forward pass. All forward passes take about as long as so many steps.
_TURNS, _FORWARDS, _STEPS_OF_FORWARDS = 5, 3, 3
# Of the fit: the most steps in it, because it compares every two, and how often it is repeated for its error.
_MOST_FITTED, _BOOTSTRAPS = 256, 32
# Elements of an addition that is timed: far more than caches hold.
_ADDED = 2**22
# Of the spread of steps: percentiles, and the half-width of the middle half of a normal distribution in its deviations.
_ENDS, _QUARTILE = (10, 90), 0.6745


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
    samples = small * (_WARM_UP_STEPS + steps[0]) + large * (_WARM_UP_STEPS + steps[1] + _STEPS_OF_FORWARDS)
    return Effort((small, large), (steps[0], steps[1]), samples * of_sample)


def measure(run: Run, plan: Effort) -> Measured:
    """Measure `run`. All ranks call this, and get the same result."""
    communicator = run.communicator
    clock = Clock(communicator.device)
    clock.running = True
    # On a GPU the host does not wait for sums.
    with communication_timed(communicator, clock) if communicator.device == CPU else nullcontext():
        return _measured(run, clock, plan)


def _measured(run: Run, clock: Clock, plan: Effort) -> Measured:
    communicator = run.communicator
    size, nodes = communicator.size, communicator.node_count
    update = _mean(communicator, _median(clock, lambda: _update(run)))
    if run.config.optimizer.sharded:
        update *= size
    small, large = (_of_all_ranks(run, _steps(run, clock, *each)) for each in zip(plan.sizes, plan.steps, strict=True))
    work, seconds = np.concatenate([small.reshape(-1, 2), large.reshape(-1, 2)]).T
    per_flop, fixed, error = fit(work, seconds - update)
    # Of the larger batch, which is closer to a run's: its steps vary less.
    ratios = large[..., 1] / (update + fixed + per_flop * large[..., 0])
    low, high = np.percentile(ratios, _ENDS).tolist()
    add, sums = _mean(communicator, _seconds_of_addition(run, clock)), _seconds_of_sums(run, clock)
    ranks_per_node = size // nodes
    return Measured(
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        threads=threads.count(),
        cores=_cores_of_node(communicator),
        seconds_per_flop=per_flop,
        micro_batch_seconds=fixed,
        micro_batch_error=error,
        update_seconds=update,
        add_seconds=add,
        node_sum_seconds=statistics.median(sums) if nodes == 1 and size > 1 else 0.0,
        crowding=_crowding(run, plan.sizes[1]),
        low=min(1.0, low),
        high=max(1.0, high),
        jitter=jitter_of(ratios),
        recompute=run.config.train.recompute,
        parts=gradient_parts(run),
        evaluation_seconds=_mean(communicator, _seconds_of_evaluation(run)),
        checkpoint_seconds=_mean(communicator, _seconds_of_checkpoint(run, clock)),
        held_out=tuple(corpus.sampler.samples_per_epoch for corpus in run.corpora.held_out),
        link=measured_link(run, sums, add) if nodes > 1 else None,
    )


def jitter_of(ratios: np.ndarray) -> float:
    """Return the standard deviation of a rank's steps, from their times in expected ones: [ranks, steps].

    What delays all ranks in the same step is no jitter: none waits for another. A rank alone cannot tell.
    """
    ranks = len(ratios)
    if ranks > 1:
        ratios = (ratios - ratios.mean(axis=0)) * math.sqrt(ranks / (ranks - 1))
    lower, upper = np.percentile(ratios, (25, 75)).tolist()
    return (upper - lower) / 2 / _QUARTILE


def fit(work: np.ndarray, seconds: np.ndarray) -> tuple[float, float, float]:
    """Return the seconds of a FLOP, those of each step besides, and the standard error of the latter.

    `work` [S] are the FLOPs of steps, which took so many `seconds` [S]. No result is negative. The slope is the median
    of those between every two steps, each weighted by how far the two are apart (Theil, 1950; Sen, 1968), so a few
    steps that something delayed do not change it. The error comes from a bootstrap.
    """
    points = np.stack([work, seconds], axis=1)
    points = points[:: -(-len(points) // _MOST_FITTED)]
    again = np.random.default_rng(0).integers(len(points), size=(_BOOTSTRAPS, len(points)))
    return *_line(points), float(np.std([_line(points[chosen])[1] for chosen in again]))


def _line(points: np.ndarray) -> tuple[float, float]:
    """Return the slope of a line through `points` [S, 2], and its value at 0."""
    x, y = points.T
    one, other = np.triu_indices(len(x), 1)
    apart, higher = x[other] - x[one], y[other] - y[one]
    differ = apart != 0
    if differ.any():
        slope = _weighted_median(higher[differ] / apart[differ], np.abs(apart[differ]))
        fixed = float(np.median(y - slope * x))
        if slope > 0 and fixed >= 0:
            return slope, fixed
    return max(0.0, _weighted_median(y / x, x)), 0.0


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


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


def _of_all_ranks(run: Run, own: list[tuple[float, float]]) -> np.ndarray:
    """Return the pairs of all ranks, each of which has as many: [ranks, pairs, 2]."""
    return np.array([json.loads(text) for text in gather_texts(run.communicator, json.dumps(own))])


def _steps(run: Run, clock: Clock, local_batch: int, count: int) -> list[tuple[float, float]]:
    """Take `count` steps, after some to warm up.

    Return the FLOPs of this rank in each, and the seconds in which it did not wait for other ranks.
    """
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


def _median(clock: Clock, action: Callable[[], object]) -> float:
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


def _seconds_of_evaluation(run: Run) -> float:
    """Return the seconds in which this rank evaluates a sample; 0 if none is held out. All ranks call this."""
    held_out, size, batch, began = run.corpora.held_out[:1], run.communicator.size, 0, 0.0
    if held_out:
        batch = min(run.config.shared_by(size).evaluation_batch, held_out[0].sampler.samples_per_epoch // size)
    if batch == 0:
        return 0.0
    for _ in range(2):  # the first time warms up
        began = time.perf_counter()
        evaluate(
            run.model,
            held_out,
            run.communicator,
            samples=batch * size,
            batch_size=batch,
            bigram_loss=lambda *_: 0.0,
        )
    return (time.perf_counter() - began) / batch


def _seconds_of_checkpoint(run: Run, clock: Clock) -> float:
    """Return the seconds in which this rank checks its weights, and copies them and the moments."""
    values = run.ddp.flat.values
    part = values[:_ADDED]
    copied = np.zeros(part.shape, part.dtype)
    checking = _median(clock, lambda: find_drift(run.ddp.flat.views(values), run.communicator))
    copying = _median(clock, lambda: np.copyto(copied, to_host(part)))
    return checking + 3 * copying * len(values) / len(part)


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


def _crowding(run: Run, samples: int) -> float:
    """Return how many times slower the first rank's forward is when all ranks compute one. All ranks call this."""
    communicator = run.communicator
    if communicator.size == communicator.node_count or communicator.device != CPU:
        return 1.0
    rows = labelled_rows(run.corpora.train.batch(0, range(samples)))

    def seconds() -> float:
        times = []
        for _ in range(_FORWARDS):
            began = time.perf_counter()
            run.model.losses(rows)
            times.append(time.perf_counter() - began)
        return min(times)

    with run.model.evaluating():
        communicator.barrier()
        together = seconds()
        communicator.barrier()
        alone = seconds() if communicator.rank == 0 else together
    return communicator.all_reduce_scalar(max(1.0, together / alone) if communicator.rank == 0 else 0.0)


def _cores_of_node(communicator: Communicator) -> int:
    """Return the cores of the first rank's node: ranks that are bound see only their own."""
    locations = locate_ranks(communicator, threads.count())
    of_host = [location for location in locations if location.host == locations[0].host]
    return sum({location.cpus: location.cores for location in of_host}.values())
