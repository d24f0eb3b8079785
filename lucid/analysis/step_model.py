"""Predicts the time of a training step on any number of nodes, from what was measured on a few.

Pure functions of settings and measured numbers (`step_measurement.py` measures them). A step of a rank takes

    computing        micro-batches x fixed seconds + FLOPs x seconds per FLOP
    update           norm, clipping and the optimizer; with a sharded optimizer, of this rank's share
    sums on the node through shared memory; and the additions of the exact reduction and of terms from other nodes
    the link         the part of the sums between nodes that backward does not hide
    the slowest rank what the others wait for it, because its sequences are longer or its steps vary

docs/scaling.md derives the terms, and says what they leave out.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lucid.backend import Array
from lucid.distributed.parallel.buckets import cut
from lucid.models.bert.config import BERTConfig
from lucid.training.config import RunConfig
from lucid.training.dealing import deal, dealt_by_place

_FLOAT32, _BFLOAT16 = 4, 2
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
class Link:
    """What joins a node to the others: bytes/s in each direction at once, and the seconds of a short message.

    `error` is the relative half-width of the interval of `rate`.
    """

    rate: float
    latency: float
    error: float = 0.0


@dataclass(frozen=True)
class GradientPart:
    """The elements [start, stop) of the flat buffers that hold a parameter, and when backward has its gradient.

    `ready` is a fraction of the time of backward.
    """

    start: int
    stop: int
    ready: float


@dataclass(frozen=True)
class Measured:
    """What was measured on `nodes` nodes with `ranks_per_node` ranks of `threads` threads, all ranks at once.

    Seconds are those of a rank. `update_seconds` is for all parameters, `add_seconds` for the addition of two arrays of
    as many elements, `node_sum_seconds` for the sum of all gradients within a node. `crowding` is how many times longer
    a rank takes when all ranks of its node compute than when it computes alone. Steps took from `low` to `high` times
    their mean. `jitter` is the standard deviation of a rank's steps, relative to their mean. Backward recomputed
    `recompute`, as in the settings.
    """

    nodes: int
    ranks_per_node: int
    threads: int
    cores: int
    seconds_per_flop: float
    micro_batch_seconds: float
    update_seconds: float
    add_seconds: float
    node_sum_seconds: float
    crowding: float
    low: float
    high: float
    jitter: float
    recompute: str
    parts: tuple[GradientPart, ...]
    link: Link | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return all as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Measured":
        """Return what `as_dict` has returned."""
        link = Link(**values["link"]) if values["link"] else None
        return cls(**values | {"parts": tuple(GradientPart(**part) for part in values["parts"]), "link": link})


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
    size = nodes * ranks_per_node
    busiest = imbalance(config, flops, size) * (1 + measured.jitter * _expected_maximum(size))
    work = _Work(float(flops.mean()), busiest)
    step = _predict(config, measured, link, nodes, ranks_per_node, work)
    ends = [
        _predict(config, _scaled(measured, factor), _with_rate(link, sign), nodes, ranks_per_node, work).seconds
        for factor, sign in ((measured.low, 1), (measured.high, -1))
    ]
    return replace(step, low=min(step.seconds, *ends), high=max(step.seconds, *ends))


@dataclass(frozen=True)
class _Work:
    """The mean FLOPs of a sample, and how many times longer the slowest rank of a step computes than a mean one."""

    flops: float
    busiest: float


def _predict(
    config: RunConfig, measured: Measured, link: Link | None, nodes: int, ranks_per_node: int, work: _Work
) -> Step:
    size = nodes * ranks_per_node
    local_batch, micro_batch = config.local_batch(size), micro_batch_of_equal_part(config, size)
    crowded, shared = crowding(measured, ranks_per_node)
    again = recomputing(config.model, config.train.recompute, measured.recompute)
    per_sample = crowded * again * measured.seconds_per_flop * work.flops
    micro_batches = -(-local_batch // micro_batch)
    own = crowded * micro_batches * measured.micro_batch_seconds + config.train.global_batch / size * per_sample
    computing = own * shared
    last = local_batch - (micro_batches - 1) * micro_batch
    backward = _BACKWARD * computing * last / local_batch
    slower = crowded * shared
    updated = 1 / size if config.optimizer.sharded else 1
    return Step(
        nodes,
        size,
        {
            COMPUTING: computing,
            UPDATE: slower * measured.update_seconds * updated,
            NODE_SUMS: slower * _additions(config, measured, nodes, ranks_per_node),
            LINK: exposed(config, measured.parts, link, nodes, backward) if link and nodes > 1 else 0.0,
            # On shared cores, ranks that are done leave theirs to the slowest.
            SLOWEST: max(0.0, own * work.busiest - computing),
        },
    )


def micro_batch_of_equal_part(config: RunConfig, size: int) -> int:
    """Return how many samples one of `size` ranks computes at once if it has an equal part of the global batch."""
    return min(config.largest_micro_batch(size), config.local_batch(size))


def _scaled(measured: Measured, factor: float) -> Measured:
    names = "seconds_per_flop", "micro_batch_seconds", "update_seconds", "add_seconds", "node_sum_seconds"
    return replace(measured, **{name: factor * getattr(measured, name) for name in names})


def _with_rate(link: Link | None, sign: int) -> Link | None:
    return replace(link, rate=link.rate * (1 + sign * min(link.error, 0.9))) if link else None


def crowding(measured: Measured, ranks_per_node: int) -> tuple[float, float]:
    """Return how many times longer a rank takes than measured, because other ranks use its node, and its cores.

    The first factor is for caches and memory: it rises with the cores in use, in a line through one rank alone and the
    measured number. The second is for ranks that take turns on a core.
    """

    def busy(ranks: int) -> float:
        return min(ranks * measured.threads, measured.cores)

    def slowdown(ranks: int) -> float:
        alone, all_at_once = busy(1), busy(measured.ranks_per_node)
        if all_at_once == alone:
            return 1.0
        return 1 + (measured.crowding - 1) * (busy(ranks) - alone) / (all_at_once - alone)

    def turns(ranks: int) -> float:
        return max(1.0, ranks * measured.threads / measured.cores)

    then = measured.ranks_per_node
    return slowdown(ranks_per_node) / slowdown(then), turns(ranks_per_node) / turns(then)


def recomputing(model: BERTConfig, part: str, measured: str) -> float:
    """Return how many times longer a micro-batch takes if backward recomputes `part`, than it took with `measured`.

    A layer's forward is a third of its FLOPs. Its first half, up to the result of attention, has four of the products
    with C x C weights; the others have 2 C I. (Attention's own products are left out of the ratio.)
    """
    first = 4 * model.hidden_size / (4 * model.hidden_size + 2 * model.intermediate_size)
    again = {"none": 0.0, "attention": first / 3, "layer": 1 / 3}
    return (1 + again[part]) / (1 + again[measured])


def imbalance(config: RunConfig, flops: Array, size: int) -> float:
    """Return the mean over global batches of the FLOPs of the busiest of `size` ranks, relative to those of a mean one.

    Batches are drawn from `flops` [S], always the same ones, and dealt to ranks as a run does.
    """
    batch = config.train.global_batch
    draws = max(_LEAST_DRAWS, min(_MOST_DRAWS, _MOST_DRAWN // batch))
    ratios = []
    for drawn in np.random.default_rng(0).choice(flops, (draws, batch)):
        ranks = np.arange(batch) * size // batch
        if not dealt_by_place(config, size):
            ranks = deal(drawn, [1.0] * size, config.local_batch(size))
        loads = np.bincount(ranks, drawn, minlength=size)
        ratios.append(loads.max() / loads.mean())
    return float(np.mean(ratios))


def _expected_maximum(ranks: int) -> float:
    """Return about the mean of the largest of `ranks` standard normal numbers (Blom, 1958)."""
    from statistics import NormalDist  # nothing else needs it

    return NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25)) if ranks > 1 else 0.0


def _additions(config: RunConfig, measured: Measured, nodes: int, ranks_per_node: int) -> float:
    """Return the seconds in which a rank adds gradients: of its micro-batches, of its node, and of other nodes."""
    size, seconds = nodes * ranks_per_node, 0.0
    if ranks_per_node > 1:
        # Each rank reads its slice of everyone's array and writes it to all: as many bytes on any number of ranks, two
        # thirds of an addition's. With a sharded optimizer it writes only its own.
        whole = measured.node_sum_seconds or 2 / 3 * measured.add_seconds
        seconds += whole * (1 + 1 / ranks_per_node) / 2 if config.optimizer.sharded else whole
    seconds += measured.add_seconds * (nodes - 1) / nodes / ranks_per_node
    if leaves := config.exact_micro_batches(size):
        seconds += measured.add_seconds * (leaves - 1)
    return seconds


def bytes_sent(elements: int, nodes: int, itemsize: int) -> float:
    """Return the bytes that each node sends, and receives, for the sum of an array over nodes; half of them to scatter.

    The ranks of a node send it in slices, together once (`communicators/between_nodes.py`).
    """
    return 2 * (nodes - 1) / nodes * elements * itemsize


def exposed(config: RunConfig, parts: Sequence[GradientPart], link: Link, nodes: int, backward_seconds: float) -> float:
    """Return the seconds of a step in which a rank does nothing but wait for messages between nodes.

    The sum of a bucket begins when its gradients are ready and the sum of the bucket before is over. The exact
    reduction begins after backward. A sharded optimizer gathers the new weights, in float32, after its update.
    """
    itemsize = _BFLOAT16 if config.distributed.wire_dtype == "bfloat16" else _FLOAT32
    halves = 1 if config.optimizer.sharded else 2
    elements = parts[-1].stop
    most = max(1, int(config.distributed.bucket_megabytes * 2**20) // _FLOAT32)
    begins, end = backward_seconds, 0.0
    for bucket in cut(parts, elements, most):
        if config.train.reduction == "fast":
            ready = max(part.ready for part in parts if bucket.start <= part.start < bucket.stop)
            begins = ready * backward_seconds
        sent = bytes_sent(bucket.stop - bucket.start, nodes, itemsize) * halves / 2
        end = max(end, begins) + sent / link.rate + halves * link.latency
    gathered = 0.0
    if config.optimizer.sharded:
        gathered = bytes_sent(elements, nodes, _FLOAT32) / 2 / link.rate + link.latency
    return max(0.0, end - backward_seconds) + gathered


def ready_fraction(name: str, layers: int, head_share: float) -> float:
    """Return the fraction of backward after which the gradient of a parameter is ready, from its name.

    Backward begins with the heads, which take `head_share` of it, and goes from the last layer to the first. The word
    embedding, which the MLM head shares, is ready at the end.
    """
    words = name.split(".")
    if "layer" in words:
        return head_share + (1 - head_share) * (layers - int(words[words.index("layer") + 1])) / layers
    return 1.0 if "embeddings" in words else head_share


def efficiency(step: Step, first: Step) -> float:
    """Return the speed of a node in `step`, relative to that in `first`."""
    return first.nodes * first.seconds / (step.nodes * step.seconds)


def doublings(nodes: int) -> list[int]:
    """Return 1, 2, 4, ... and `nodes` itself."""
    return sorted({2**power for power in range(int(math.log2(nodes)) + 1)} | {nodes})
