"""Measures some steps on the ranks that were launched, and prints what they predict for more nodes."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from lucid import kernels
from lucid.analysis.prediction.link_model import Link
from lucid.analysis.prediction.pause_model import Pauses, pauses
from lucid.analysis.prediction.step_measurement import effort, endless, measure, with_local_batch
from lucid.analysis.prediction.step_model import (
    LINK,
    Measured,
    Step,
    doublings,
    efficiency,
    predict,
)
from lucid.analysis.product_limit import encoder_product_rate
from lucid.backend import CPU, Array, zeros
from lucid.distributed import Communicator, ProcessGroup, watched
from lucid.errors import ConfigError
from lucid.training.config import RunConfig
from lucid.training.corpora import open_mixture
from lucid.training.estimates import flops_of_samples, memory
from lucid.training.formatting import count, duration, quantity
from lucid.training.micro_batch_size import with_chosen_micro_batch
from lucid.training.numerical_environment import limit_threads
from lucid.training.setup import communicator_of, open_run

# Of a link's rate, Ethernet's frames and the headers of TCP and IP leave 1,448 bytes of 1,538.
_PAYLOAD = 1448 / 1538
_LATENCY = 50e-6
# What TCP takes of a core, as measured on an AMD EPYC at 2.6 GHz (docs/scaling.md).
_PER_MESSAGE, _PER_BYTE = 20e-6, 0.8e-9
_BITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
# Speed a node, relative to one node, that is worth its price to most.
_GOOD = 0.8
_NOTEWORTHY = 0.2


@dataclass(frozen=True)
class Scope:
    """What to predict: up to `nodes` nodes of `ranks_per_node` ranks; the link between them, if it is given."""

    nodes: int
    ranks_per_node: int
    link: Link | None

    @classmethod
    def of(cls, group: ProcessGroup, nodes: int | None, ranks_per_node: int | None, link: str | None) -> "Scope":
        """Return what the options ask for. Raises `ConfigError`."""
        found = cls(
            nodes or group.node_count, ranks_per_node or group.size // group.node_count, parse(link) if link else None
        )
        if found.nodes > 1 and group.node_count == 1 and found.link is None:
            raise ConfigError(
                f"--nodes {found.nodes} needs the link between nodes, and all ranks are on one: launch this on "
                "several, or say what to assume, such as --link 10Gbit"
            )
        return found

    def sizes(self, config: RunConfig) -> list[int]:
        """Return the numbers of nodes to predict: those whose ranks the settings allow."""
        ranks = {nodes: nodes * self.ranks_per_node for nodes in doublings(self.nodes)}
        return [nodes for nodes, size in ranks.items() if config.ranks_that_serve(size) == size]


def parse(text: str) -> Link:
    """Return the link that --link writes: a rate in bits a second, and perhaps a latency."""
    match = re.fullmatch(r"([0-9.]+) ?([kMGT]?)bit(?:/s)?(?:, ?([0-9.]+) ?(us|ms|s))?", text)
    try:
        if match is None:
            raise ValueError
        rate = float(match[1]) * _BITS[match[2]] / 8
        latency = float(match[3]) * _SECONDS[match[4]] if match[3] else _LATENCY
        if rate <= 0:
            raise ValueError
    except ValueError:
        raise ConfigError(f"--link takes a rate, such as 10Gbit, or 100Gbit,2us with a latency, got '{text}'") from None
    return Link(_PAYLOAD * rate, latency, seconds_per_message=_PER_MESSAGE, seconds_per_byte=_PER_BYTE)


def measure_and_print(config: RunConfig, group: ProcessGroup, scope: Scope, as_json: bool) -> None:
    """Measure steps of a run, and print what they predict. All ranks call this."""
    nodes = scope.sizes(config)
    if not nodes:
        raise ConfigError(
            f"{scope.ranks_per_node} ranks on a node cannot train with these settings, nor on more nodes: choose "
            "another number of --ranks-per-node, or see lucid plan --ranks"
        )
    limit_threads(config.threads_per_rank)
    communicator = communicator_of(config, group)
    config = with_chosen_micro_batch(config, communicator)
    flops = flops_of_samples(config, open_mixture(config))
    sizes = [config.shared_by(number * scope.ranks_per_node).micro_batch_of_equal_part for number in nodes]
    measured = _measure(config, communicator, group, sizes, flops, as_json)
    if group.rank:
        return
    link = scope.link or measured.link
    found = [Prediction.of(config, measured, link, number, scope.ranks_per_node, flops) for number in nodes]
    if as_json:
        steps = [asdict(each.step) | {"pauses": asdict(each.pauses)} for each in found]
        print(json.dumps({"measured": measured.as_dict(), "steps": steps}))
        return
    rows = table(config, measured, found)
    print(*_measurement(measured, link, flops), "", *rows, "", *remarks(config, scope, measured, found), sep="\n")


@dataclass(frozen=True)
class Prediction:
    """What a step takes on a number of nodes, and how often and for how long the run pauses."""

    step: Step
    pauses: Pauses

    @classmethod
    def of(
        cls, config: RunConfig, measured: Measured, link: Link | None, nodes: int, ranks_per_node: int, flops: Array
    ) -> "Prediction":
        """Return the prediction for `nodes` nodes; the rest is as in `predict`."""
        step = predict(config, measured, link, nodes, ranks_per_node, flops)
        return cls(step, pauses(config, measured, link, nodes, ranks_per_node))

    def hours(self, config: RunConfig, seconds_of_step: float | None = None) -> float:
        """Return the hours of the run if a step takes as long as predicted, or `seconds_of_step`."""
        of_steps = config.train.steps * (seconds_of_step or self.step.seconds)
        return (of_steps + self.pauses.seconds) / 3600


def _measure(
    config: RunConfig,
    communicator: Communicator,
    group: ProcessGroup,
    sizes: Sequence[int],
    flops: Array,
    quiet: bool,
) -> Measured:
    """Measure steps of local batches of about `sizes`. All ranks call this."""
    plan = effort(sizes, float(flops.mean()), _mean_rate(config, communicator))
    if group.rank == 0 and not quiet:
        about = f", about {duration(max(2.0, plan.seconds))}" if communicator.device == CPU else ""
        batches = " and ".join(map(str, sorted(set(plan.sizes))))
        print(
            f"\nmeasuring: steps of {batches} {config.samples} a rank on {count(group.size, 'rank')}{about}", flush=True
        )
    with watched(group, config.train.watchdog_seconds):
        local = with_local_batch(endless(config), plan.sizes[1], group.size)
        return measure(open_run(local, communicator), plan)


def _mean_rate(config: RunConfig, communicator: Communicator) -> float:
    """Return the mean FLOP/s of the ranks' products, all at once: the same on all ranks."""
    if communicator.device == CPU:
        kernels.set_precision(config.train.precision)
    rate = encoder_product_rate(config, communicator.size, zeros(0, np.float32, communicator.device))
    return communicator.all_reduce_scalar(rate) / communicator.size


def _measurement(measured: Measured, link: Link | None, flops: Array) -> Iterator[str]:
    """Yield lines about what was measured."""
    ranks, threads = count(measured.ranks_per_node, "rank"), count(measured.threads, "thread")
    times = {
        "sample": measured.seconds_per_flop * float(flops.mean()),
        "micro-batch": measured.micro_batch_seconds,
        "update": measured.update_seconds,
    }
    each = ", ".join(f"{1e3 * seconds:,.3g} ms for each {name}" for name, seconds in times.items())
    spread = f"steps vary from {measured.low - 1:+.0%} to {measured.high - 1:+.0%}"
    yield f"measured     {count(measured.nodes, 'node')} of {ranks} x {threads}: {each}; {spread}"
    if link:
        origin = f"+- {link.error:.0%}, measured" if link is measured.link else "assumed"
        yield (
            f"link         {8 * link.rate / 1e9:.3g} Gbit/s of gradients each way, latency "
            f"{1e6 * link.latency:,.3g} us, {origin}; a message takes {1e6 * link.seconds_per_message:.3g} us of a "
            f"core, and {1e9 * link.seconds_per_byte:.3g} ms for each MB"
        )


def table(config: RunConfig, measured: Measured, found: Sequence[Prediction]) -> Iterator[str]:
    """Yield the lines of a table with a line for each predicted step."""
    unit = "GPU-hours" if config.train.device == "cuda" else "core-hours"
    yield (
        f"{'nodes':>5} {'ranks':>6} {'step, ms':>22}  {'memory':>8}  {'link':>5}  {'efficiency':>10} "
        f"{'hours of the run':>22}  {unit:>10}  mostly"
    )
    for each in found:
        step = each.step
        hours = [each.hours(config, seconds) for seconds in (step.seconds, step.low, step.high)]
        yield (
            f"{step.nodes:5,} {step.ranks:6,} {_range(*(1e3 * x for x in (step.seconds, step.low, step.high))):>22}  "
            f"{quantity(memory(config, step.ranks, nodes=step.nodes).of_rank, 'B'):>8}  {step.share(LINK):5.0%}  "
            f"{efficiency(step, found[0].step):10.0%} {_range(*hours):>22}  "
            f"{hours[0] * _units(config, measured, step):10,.4g}  {step.largest}, {step.share(step.largest):.0%}"
        )


def _units(config: RunConfig, measured: Measured, step: Step) -> int:
    """Return the number of GPUs, or of cores, that a run keeps: nodes are charged whole."""
    return step.ranks if config.train.device == "cuda" else step.nodes * measured.cores


def _range(*values: float) -> str:
    """Write a value, and the ends of its interval, with three digits."""
    middle, low, high = (f"{value:,.0f}" if value >= 100 else f"{value:#,.3g}" for value in values)
    return f"{middle} ({low} to {high})"


def remarks(config: RunConfig, scope: Scope, measured: Measured, found: Sequence[Prediction]) -> Iterator[str]:
    """Yield sentences about what the table means."""
    steps = [each.step for each in found]
    most = max(step.nodes for step in steps if efficiency(step, steps[0]) >= _GOOD)
    first = count(steps[0].nodes, "node")
    if len(steps) > 1 and most == steps[0].nodes:
        yield f"With more nodes than {most}, a node is less than {_GOOD:.0%} as fast as on {first}."
    elif len(steps) > 1:
        yield f"Up to {count(most, 'node')}, a node is at least {_GOOD:.0%} as fast as on {first}."
    limited = [step for step in steps if step.share(LINK) >= _NOTEWORTHY]
    if limited:
        share, first = limited[0].share(LINK), count(limited[0].nodes, "node")
        yield f"The link takes {share:.0%} of a step from {first} on."
    if scope.ranks_per_node != measured.ranks_per_node:
        yield (
            f"Measured with {count(measured.ranks_per_node, 'rank')} a node, predicted for {scope.ranks_per_node}: how "
            "more or fewer ranks share a node's memory is a guess. Launch as many to measure it."
        )
    if left_out := [number for number in doublings(scope.nodes) if number not in {step.nodes for step in steps}]:
        numbers = ", ".join(map(str, left_out))
        yield f"The settings do not allow as many ranks as {numbers} nodes have: see lucid plan --ranks."
    soonest = min(found, key=lambda each: each.hours(config))
    hours, units = soonest.hours(config), _units(config, measured, soonest.step)
    unit = "GPU" if config.train.device == "cuda" else "core"
    ends = "It ends soonest on" if len(steps) > 1 else "On"
    yield (
        f"{ends} {count(soonest.step.nodes, 'node')}: {hours:,.3g} hours on {count(units, unit)}, "
        f"{hours * units:,.3g} {unit}-hours."
    )
    yield _what_hours_are(soonest.pauses)


def _what_hours_are(pauses: Pauses) -> str:
    """Return a sentence that says what the hours of a run count."""
    counted = ["all train.steps"]
    if pauses.evaluations:
        counted.append(f"{count(pauses.evaluations, 'evaluation')} of {pauses.evaluation_seconds:,.2g} s")
    if pauses.checkpoints:
        counted.append(f"{count(pauses.checkpoints, 'checkpoint')}, each copied in {pauses.checkpoint_seconds:,.2g} s")
    *others, last = counted
    what = f"{', '.join(others)} and {last}" if others else last
    return f"Hours are those of {what}, without the start and the writing of checkpoints."
