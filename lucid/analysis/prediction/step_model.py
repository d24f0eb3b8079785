"""Predicts the time of a training step on any number of nodes, from what was measured on a few.

Pure functions of settings and measured numbers (`step_measurement.py` measures them). A step of a rank takes

    computing        micro-batches x fixed seconds + FLOPs x seconds per FLOP
    update           norm, clipping and the optimizer; with a sharded optimizer, of this rank's share
    sums on the node through shared memory; and the additions of the exact reduction and of terms from other nodes
    the link         what the sums between nodes add to that (`link_model.py`)
    the slowest rank what the others wait for it, because its sequences are longer or its steps vary

docs/scaling.md derives the terms, and says what they leave out.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lucid.analysis.prediction.link_model import GradientPart, Link, Nodes, seconds_of_sums
from lucid.backend import Array
from lucid.models.bert.config import BERTConfig
from lucid.training.config import RunConfig
from lucid.training.dealing import deal, dealt_by_place

# Backward computes two products for each of forward, so it takes this part of a micro-batch.
_BACKWARD = 2 / 3
# Global batches drawn for the mean imbalance, and about the most samples of all of them.
_LEAST_DRAWS, _MOST_DRAWS, _MOST_DRAWN = 4, 64, 2**15
COMPUTING, UPDATE, NODE_SUMS, LINK, SLOWEST = (
    "computing",
    "the update",
    "sums on a node",
    "the link",
    "the slowest rank",
)


@dataclass(frozen=True)
class Measured:
    """What was measured on `nodes` nodes with `ranks_per_node` ranks of `threads` threads, all ranks at once.

    Seconds are those of a rank. `update_seconds` is for all parameters, `add_seconds` for the addition of two arrays of
    as many elements, `node_sum_seconds` for the sum of all gradients within a node. `crowding` is how many times longer
    a rank takes when all ranks of its node compute than when it computes alone. Steps took from `low` to `high` times
    their mean. `jitter` is the standard deviation of a rank's steps, relative to their mean; `micro_batch_error` is
    that of `micro_batch_seconds`. Backward recomputed `recompute`, as in the settings.

    `evaluation_seconds` is for each sample that a rank evaluates, and `checkpoint_seconds` for what a checkpoint does
    before it is written in the background. `held_out` has the number of held-out samples of each corpus.
    """

    nodes: int
    ranks_per_node: int
    threads: int
    cores: int
    seconds_per_flop: float
    micro_batch_seconds: float
    micro_batch_error: float
    update_seconds: float
    add_seconds: float
    node_sum_seconds: float
    crowding: float
    low: float
    high: float
    jitter: float
    recompute: str
    parts: tuple[GradientPart, ...]
    evaluation_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    held_out: tuple[int, ...] = ()
    link: Link | None = None

    @property
    def at_once(self) -> float:
        """How many ranks of a node have cores for all of their threads."""
        return self.cores / self.threads

    def turns(self, ranks_per_node: int) -> float:
        """Return how many times longer so many ranks of a node take because they take turns on its cores."""
        return max(1.0, ranks_per_node / self.at_once)

    def as_dict(self) -> dict[str, Any]:
        """Return all as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Measured":
        """Return what `as_dict` has returned."""
        link = Link(**values["link"]) if values["link"] else None
        parts = tuple(GradientPart(**part) for part in values["parts"])
        return cls(**values | {"parts": parts, "held_out": tuple(values["held_out"]), "link": link})


@dataclass(frozen=True)
class Step:
    """A predicted step: its seconds by what they are spent on, and the ends of an interval for their sum."""

    nodes: int
    ranks: int
    parts: dict[str, float]
    low: float = 0.0
    high: float = 0.0

    @property
    def seconds(self) -> float:
        """The seconds of the step."""
        return sum(self.parts.values())

    def share(self, name: str) -> float:
        """Return the share of a part in the step."""
        return self.parts[name] / self.seconds

    @property
    def largest(self) -> str:
        """The name of what takes most of the step."""
        return max(self.parts, key=lambda name: self.parts[name])


def predict(
    config: RunConfig, measured: Measured, link: Link | None, nodes: int, ranks_per_node: int, flops: Array
) -> Step:
    """Return the step of a run on `nodes` nodes. `flops` [S] are those of some samples, forward and backward.

    `link` may be None if there is one node.
    """
    work = _Work(float(flops.mean()), last_end(config, flops, nodes, ranks_per_node, measured.at_once, measured.jitter))
    step = _predict(config, measured, link, nodes, ranks_per_node, work)
    ends = [
        _predict(config, _scaled(measured, factor), _with_rate(link, sign), nodes, ranks_per_node, work).seconds
        for factor, sign in ((measured.low, 1), (measured.high, -1))
    ]
    return replace(step, low=min(step.seconds, *ends), high=max(step.seconds, *ends))


@dataclass(frozen=True)
class _Work:
    """The mean FLOPs of a sample; and when the last rank of a step has computed, if a mean rank alone takes 1."""

    flops: float
    last_end: float


def _predict(
    config: RunConfig, measured: Measured, link: Link | None, nodes: int, ranks_per_node: int, work: _Work
) -> Step:
    size = nodes * ranks_per_node
    shared = config.shared_by(size)
    local_batch, micro_batch = shared.local_batch, shared.micro_batch_of_equal_part
    crowded = crowding(measured, ranks_per_node) / measured.turns(measured.ranks_per_node)
    turns = measured.turns(ranks_per_node)
    again = recomputing(config.model, config.train.recompute, measured.recompute)
    micro_batches = -(-local_batch // micro_batch)
    own = crowded * (
        micro_batches * measured.micro_batch_seconds
        + config.train.global_batch / size * again * measured.seconds_per_flop * work.flops
    )
    computing = own * turns
    last = local_batch - (micro_batches - 1) * micro_batch
    backward = _BACKWARD * computing * last / local_batch
    updated = 1 / size if config.optimizer.sharded else 1
    between = Nodes(nodes, ranks_per_node, has_free_cores=ranks_per_node < measured.at_once)
    return Step(
        nodes,
        size,
        {
            COMPUTING: computing,
            UPDATE: crowded * turns * measured.update_seconds * updated,
            NODE_SUMS: crowded * turns * _additions(config, measured, nodes, ranks_per_node),
            LINK: seconds_of_sums(config, measured.parts, link, between, backward) if link and nodes > 1 else 0.0,
            SLOWEST: max(0.0, own * work.last_end - computing),
        },
    )


def _scaled(measured: Measured, factor: float) -> Measured:
    names = "seconds_per_flop", "micro_batch_seconds", "update_seconds", "add_seconds", "node_sum_seconds"
    return replace(measured, **{name: factor * getattr(measured, name) for name in names})


def _with_rate(link: Link | None, sign: int) -> Link | None:
    return replace(link, rate=link.rate * (1 + sign * min(link.error, 0.9))) if link else None


def crowding(measured: Measured, ranks_per_node: int) -> float:
    """Return how many times longer a rank takes than measured, because other ranks use the caches and memory of a node.

    That rises with the cores in use, in a line through one rank alone and the measured number.
    """

    def busy(ranks: int) -> float:
        return min(ranks * measured.threads, measured.cores)

    def slowdown(ranks: int) -> float:
        alone, all_at_once = busy(1), busy(measured.ranks_per_node)
        if all_at_once == alone:
            return 1.0
        return 1 + (measured.crowding - 1) * (busy(ranks) - alone) / (all_at_once - alone)

    return slowdown(ranks_per_node) / slowdown(measured.ranks_per_node)


def recomputing(model: BERTConfig, part: str, measured: str) -> float:
    """Return how many times longer a micro-batch takes if backward recomputes `part`, than it took with `measured`.

    A layer's forward is a third of its FLOPs. Its first half, up to the result of attention, has four of the products
    with C x C weights; the others have 2 C I. (Attention's own products are left out of the ratio.)
    """
    first = 4 * model.hidden_size / (4 * model.hidden_size + 2 * model.intermediate_size)
    again = {"none": 0.0, "attention": first / 3, "layer": 1 / 3}
    return (1 + again[part]) / (1 + again[measured])


def last_end(
    config: RunConfig, flops: Array, nodes: int, ranks_per_node: int, at_once: float, jitter: float = 0.0
) -> float:
    """Return when the last rank of a step has computed, in units of a mean rank's computing alone: a mean over batches.

    Batches are drawn from `flops` [S], always the same ones, and dealt to ranks as a run does. The time of each rank
    varies by `jitter`, relative to it. `at_once` ranks of a node have cores; more than these take turns.
    """
    batch, size = config.train.global_batch, nodes * ranks_per_node
    draws = max(_LEAST_DRAWS, min(_MOST_DRAWS, _MOST_DRAWN // batch))
    generator, ends = np.random.default_rng(0), []
    for drawn in generator.choice(flops, (draws, batch)):
        ranks = np.arange(batch) * size // batch
        if not dealt_by_place(config, size):
            ranks = deal(drawn, [1.0] * size, config.shared_by(size).local_batch)
        loads = np.bincount(ranks, drawn, minlength=size) * size / drawn.sum()
        loads *= np.maximum(0.0, 1 + jitter * generator.standard_normal(size))
        ends.append(max(_end_of_turns(of_node, at_once) for of_node in loads.reshape(nodes, ranks_per_node)))
    return float(np.mean(ends))


def _end_of_turns(loads: Array, at_once: float) -> float:
    """Return when the last of some ranks is done that take turns on cores for `at_once` of them, given their `loads`.

    All ranks that are not done yet advance equally fast.
    """
    left = np.arange(len(loads), 0, -1)
    return float(np.diff(np.sort(loads), prepend=0.0) @ np.maximum(1.0, left / at_once))


def _additions(config: RunConfig, measured: Measured, nodes: int, ranks_per_node: int) -> float:
    """Return the seconds in which a rank adds gradients: of its micro-batches, of its node, and of other nodes."""
    size, seconds = nodes * ranks_per_node, 0.0
    if ranks_per_node > 1:
        # Each rank reads its slice of everyone's array and writes it to all: as many bytes on any number of ranks, two
        # thirds of an addition's. With a sharded optimizer it writes only its own.
        whole = measured.node_sum_seconds or 2 / 3 * measured.add_seconds
        seconds += whole * (1 + 1 / ranks_per_node) / 2 if config.optimizer.sharded else whole
    seconds += measured.add_seconds * (nodes - 1) / nodes / ranks_per_node
    if leaves := config.shared_by(size).exact_micro_batches:
        seconds += measured.add_seconds * (leaves - 1)
    return seconds


def efficiency(step: Step, first: Step) -> float:
    """Return the speed of a node in `step`, relative to that in `first`."""
    return first.nodes * first.seconds / (step.nodes * step.seconds)


def doublings(nodes: int) -> list[int]:
    """Return 1, 2, 4, ... and `nodes` itself."""
    return sorted({2**power for power in range(int(math.log2(nodes)) + 1)} | {nodes})
