"""Searches how to start a run: ranks and threads, micro-batch, sharded optimizer, recomputation, buckets.

None of these changes what is learnt beyond rounding. Under the exact reduction the micro-batch and the threads decide
bits, so they stay. What travels between nodes is rounded only if the settings say so: that is not searched.

Ranks x threads are measured, each by `lucid plan --measure` in processes of its own. The rest follows from the model.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from lucid.analysis.prediction.link_model import Link
from lucid.analysis.prediction.step_model import Measured, Step, predict
from lucid.backend import Array
from lucid.errors import ConfigError, LaunchError
from lucid.launch.limits import HostMemory, available_cores
from lucid.launch.mpirun import look_around, plan
from lucid.launch.options import Options
from lucid.training.config import RunConfig, load
from lucid.training.corpora import open_mixture
from lucid.training.estimates import flops_of_samples, memory
from lucid.training.formatting import count, quantity

_MOST_MEASURED = 4
_BUCKETS = (2.0, 8.0, 25.0)
_SHOWN, _ALIKE_SHOWN = 3, 4
# Of two ways with one measurement, this relative difference says nothing, and so many errors of what a micro-batch
# takes.
_NO_DIFFERENCE, _ERRORS = 0.01, 2.0


@dataclass(frozen=True)
class Way:
    """A way to start a run: its settings, how they differ from the file's, and what a step is predicted to take."""

    config: RunConfig
    overrides: tuple[str, ...]
    measured: Measured
    step: Step

    @property
    def kind(self) -> tuple[object, ...]:
        """What distinguishes ways that are worth a line each: everything but the buckets."""
        config = self.config
        measured = self.measured.ranks_per_node
        return measured, config.train.micro_batch, config.optimizer.sharded, config.train.recompute

    @property
    def micro_batches(self) -> int:
        """The micro-batches of a step on each rank."""
        shared = self.config.shared_by(self.step.ranks)
        return -(-shared.local_batch // shared.micro_batch_of_equal_part)

    def resembles(self, other: "Way") -> bool:
        """Return whether the measurement cannot tell which of the two is faster."""
        if self.measured != other.measured:
            return False
        unknown = _ERRORS * self.measured.micro_batch_error * abs(self.micro_batches - other.micro_batches)
        apart = abs(self.step.seconds - other.step.seconds)
        return apart <= unknown + _NO_DIFFERENCE * self.step.seconds

    @property
    def order(self) -> tuple[float, int]:
        """The key to sort by: fast ways come first, and of equally fast ones those that change less."""
        return float(f"{self.step.seconds:.3g}"), len(self.overrides)


def print_best(path: Path, overrides: Sequence[str], nodes: int, link: Link | None) -> None:
    """Measure the ways to divide this machine's cores, and print the best ways to start a run on nodes like it.

    Raises `ConfigError` if no way fits in memory.
    """
    config = load(path, overrides)
    if config.train.device == "cuda":
        raise ConfigError("--best divides cores, but the run has train.device=cuda, where each rank has a GPU")
    if nodes > 1 and link is None:
        raise ConfigError(f"--nodes {nodes} needs the link between nodes: say what to assume, such as --link 10Gbit")
    flops = flops_of_samples(config, open_mixture(config))
    free = HostMemory.read().free
    found: list[Way] = []
    for ranks in divisions(config, available_cores(), nodes, free):
        print(f"measuring {count(ranks, 'rank')} x {count(available_cores() // ranks, 'thread')}", flush=True)
        measured = _measure(path, overrides, ranks)
        found += _ways(config, overrides, measured, link, nodes, flops, free)
    if not found:
        raise ConfigError(
            f"no way to start this run fits in the {quantity(free, 'B')} of memory that are free here: make the model "
            "or the sequences smaller"
        )
    print()
    for place, ways in enumerate(told_apart(best_of(found))[:_SHOWN], start=1):
        print(*_lines(place, ways, path, nodes), sep="\n")


def best_of(ways: Sequence[Way]) -> list[Way]:
    """Return the best way of each kind, the best kinds first."""
    kinds: dict[tuple[object, ...], Way] = {}
    for way in sorted(ways, key=lambda way: way.order):
        kinds.setdefault(way.kind, way)
    return list(kinds.values())


def told_apart(ways: Sequence[Way]) -> list[list[Way]]:
    """Group ways, which come fastest first, by whether they resemble the fastest of a group.

    In each group, the ways that change least come first.
    """
    groups: list[list[Way]] = []
    for way in ways:
        alike = next((group for group in groups if way.resembles(group[0])), None)
        if alike is None:
            groups.append([way])
        else:
            alike.append(way)
    return [sorted(group, key=lambda way: len(way.overrides)) for group in groups]


def divisions(config: RunConfig, cores: int, nodes: int, free: int) -> list[int]:
    """Return some numbers of ranks that divide the cores of a node, the most ranks first: about evenly many in between.

    They are allowed by the settings, and some way to compute fits in `free` bytes.
    """
    exact = config.train.reduction == "exact"
    allowed = [
        ranks
        for ranks in range(cores, 0, -1)
        if cores % ranks == 0
        and (ranks == cores or not exact)
        and config.ranks_that_serve(nodes * ranks) == nodes * ranks
        and any(_fits(variant, nodes * ranks, ranks, free) for variant, _ in variants(config, nodes * ranks))
    ]
    if len(allowed) <= _MOST_MEASURED:
        return allowed
    last = len(allowed) - 1
    return [allowed[round(number * last / (_MOST_MEASURED - 1))] for number in range(_MOST_MEASURED)]


def variants(config: RunConfig, size: int) -> Iterator[tuple[RunConfig, tuple[str, ...]]]:
    """Yield settings for `size` ranks that learn the same, with the overrides that make them of `config`."""
    local_batch = config.shared_by(size).local_batch
    micro_batches = [config.train.micro_batch_size]
    if config.train.balance == "speed":  # which needs a number, also in place of auto
        micro_batches = [config.train.micro_batch_size or local_batch]
    if config.train.reduction == "fast":
        micro_batches += [2**power for power in range(local_batch.bit_length()) if 2**power < local_batch]
    sharded = [config.optimizer.sharded, *([not config.optimizer.sharded] if size > 1 else [])]
    buckets = dict.fromkeys([config.distributed.bucket_megabytes, *_BUCKETS])
    for choice in product(dict.fromkeys(micro_batches), sharded, ("none", "attention", "layer"), buckets):
        changed, overrides = config, []
        names = ("train.micro_batch", "optimizer.sharded", "train.recompute", "distributed.bucket_megabytes")
        for name, value in zip(names, choice, strict=True):
            section, _, key = name.partition(".")
            part = getattr(changed, section)
            if getattr(part, key) != value:
                changed = changed.model_copy(update={section: part.model_copy(update={key: value})})
                overrides.append(f"{name}={value if isinstance(value, str) else json.dumps(value)}")
        yield changed, tuple(overrides)


def _ways(
    config: RunConfig,
    overrides: Sequence[str],
    measured: Measured,
    link: Link | None,
    nodes: int,
    flops: Array,
    free: int,
) -> Iterator[Way]:
    """Yield the ways with as many ranks as were measured that fit in `free` bytes of a node."""
    ranks = measured.ranks_per_node
    for variant, changes in variants(config, nodes * ranks):
        if _fits(variant, nodes * ranks, ranks, free):
            step = predict(variant, measured, link, nodes, ranks, flops)
            yield Way(variant, (*overrides, *changes), measured, step)


def _fits(config: RunConfig, size: int, ranks_per_node: int, free: int) -> bool:
    return memory(config, size, nodes=-(-size // ranks_per_node)).ranks_within(free) >= ranks_per_node


def _measure(path: Path, overrides: Sequence[str], ranks: int) -> Measured:
    """Run `lucid plan --measure` on `ranks` ranks of this machine, placed as `lucid launch` does."""
    options = Options("plan", (str(path), *overrides, "--measure", "--json"), ranks=ranks)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    launch = plan(options, look_around(sys.executable, options), environment)
    finished = subprocess.run(
        launch.command, env=environment | launch.variables, capture_output=True, text=True, check=False
    )
    if finished.returncode:
        raise LaunchError(f"{count(ranks, 'rank')} could not be measured: {finished.stderr.strip()[-500:]}")
    return Measured.from_dict(json.loads(finished.stdout[finished.stdout.index("{") :])["measured"])


def _lines(place: int, ways: Sequence[Way], path: Path, nodes: int) -> Iterator[str]:
    """Yield the lines about ways that are equally fast: speed and memory of the first, its command, and the others."""
    way, *others = ways
    step, need, measured = way.step, memory(way.config, way.step.ranks, nodes=nodes), way.measured
    yield (
        f"{place}. {1e3 * step.seconds:,.4g} ms a step ({1e3 * step.low:,.4g} to {1e3 * step.high:,.4g}), "
        f"{quantity(need.of_rank, 'B')} a rank: {count(measured.ranks_per_node, 'rank')} x "
        f"{count(measured.threads, 'thread')} a node; {step.largest} takes {step.share(step.largest):.0%}"
    )
    if nodes == 1:
        yield f"   OMP_NUM_THREADS={measured.threads} " + shlex.join(
            ["lucid", "launch", "-n", str(measured.ranks_per_node), str(path), *way.overrides]
        )
    else:
        options = ["--nodes", nodes, "--ranks-per-node", measured.ranks_per_node]
        options += ["--threads-per-rank", measured.threads]
        yield "   " + shlex.join(["lucid", "submit", str(path), *map(str, options), *way.overrides])
    if others:
        shown = [shlex.join(other.overrides) or "the settings of the file" for other in others[:_ALIKE_SHOWN]]
        if len(others) > len(shown):
            shown.append(f"{len(others) - len(shown)} more ways")
        yield f"   as fast, as far as the measurement can tell: {'; '.join(shown)}"
