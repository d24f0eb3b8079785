"""Predicts the sums of gradients between nodes: the bytes and messages of each bucket, and what backward hides of them.

Pure functions of settings and measured numbers, a part of `step_model.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lucid.distributed.parallel.buckets import cut
from lucid.training.config import RunConfig

_FLOAT32, _BFLOAT16 = 4, 2
# Bytes/s that a rank's thread sends and receives over TCP while the rank computes, as measured for docs/scaling.md.
_WHILE_COMPUTING = 0.35e9


@dataclass(frozen=True)
class Link:
    """What joins a node to the others, and what messages cost the processors of its ranks.

    `rate` is in bytes/s, in each direction at once; `latency` is the seconds of a short message. A rank needs
    `seconds_per_message` of a core to send and receive a message, and `seconds_per_byte` for each byte of it. `error`
    is the relative half-width of the interval of `rate`.
    """

    rate: float
    latency: float
    error: float = 0.0
    seconds_per_message: float = 0.0
    seconds_per_byte: float = 0.0


@dataclass(frozen=True)
class GradientPart:
    """The elements [start, stop) of the flat buffers that hold a parameter, and when backward has its gradient.

    `ready` is a fraction of the time of backward.
    """

    start: int
    stop: int
    ready: float


@dataclass(frozen=True)
class Nodes:
    """So many nodes with so many ranks each; `has_free_cores` if a node has more cores than its ranks have threads."""

    count: int
    ranks: int
    has_free_cores: bool = False


def bytes_sent(elements: int, nodes: int, itemsize: int) -> float:
    """Return the bytes that each node sends, and receives, for the sum of an array over nodes; half of them to scatter.

    The ranks of a node send it in slices, together once (`communicators/between_nodes.py`).
    """
    return 2 * (nodes - 1) / nodes * elements * itemsize


def seconds_of_sums(
    config: RunConfig, parts: Sequence[GradientPart], link: Link, nodes: Nodes, backward_seconds: float
) -> float:
    """Return by how much the sums between nodes lengthen a step.

    The sum of a bucket begins when its gradients are ready and the sum of the bucket before is over. The exact
    reduction begins after backward. If no core is free, messages take their processor time from backward. A sharded
    optimizer gathers the new weights, in float32, after its update.
    """
    if config.train.device == "cuda":
        link = Link(link.rate, link.latency)  # messages need no processor that computes
    itemsize = _BFLOAT16 if config.distributed.wire_dtype == "bfloat16" else _FLOAT32
    halves = 1 if config.optimizer.sharded else 2
    # Since backward began; and of these, the seconds in which backward itself went on.
    elapsed = computed = 0.0
    for elements, ready in _buckets(config, parts):
        ready_at = ready * backward_seconds
        elapsed += max(0.0, ready_at - computed)
        computed = max(computed, ready_at)
        bucket = _Transfer.of(link, nodes, elements * itemsize, halves)
        hidden = bucket.hidden_by(backward_seconds - computed)
        elapsed += hidden * bucket.while_computing + (1 - hidden) * bucket.seconds + halves * link.latency
        computed = min(backward_seconds, computed + hidden * bucket.computing_meanwhile + halves * link.latency)
    gathered = 0.0
    if config.optimizer.sharded:
        parts_sent = [_Transfer.of(link, nodes, elements * _FLOAT32, 1) for elements, _ in _buckets(config, parts)]
        gathered = sum(each.seconds for each in parts_sent) + link.latency
    return elapsed - computed + gathered


@dataclass(frozen=True)
class _Transfer:
    """The seconds in which a bucket travels: if ranks wait for it, and while they compute; and what they do of that."""

    seconds: float
    while_computing: float
    computing_meanwhile: float

    @classmethod
    def of(cls, link: Link, nodes: Nodes, size: float, halves: int) -> "_Transfer":
        """Return the transfer of `size` bytes that are scattered, and also gathered if `halves` is 2.

        A rank exchanges a message with each other node. The slower of the link and of its processor counts.
        """
        sent = bytes_sent(1, nodes.count, 1) * size * halves / 2
        of_rank = sent / nodes.ranks
        messages = halves * (nodes.count - 1)
        processor = messages * link.seconds_per_message + of_rank * link.seconds_per_byte
        seconds = max(sent / link.rate, processor)
        # Where bytes take no processor time, no thread has to move them.
        slowly = max(seconds, of_rank / _WHILE_COMPUTING) if link.seconds_per_byte else seconds
        return cls(seconds, slowly, slowly if nodes.has_free_cores else slowly - processor)

    def hidden_by(self, backward_seconds: float) -> float:
        """Return which fraction of the transfer is over after so many seconds of backward."""
        if self.computing_meanwhile <= backward_seconds:
            return 1.0
        return backward_seconds / self.computing_meanwhile


def _buckets(config: RunConfig, parts: Sequence[GradientPart]) -> Iterator[tuple[int, float]]:
    """Yield the elements of each bucket, and after which fraction of backward its gradients are ready."""
    most = max(1, int(config.distributed.bucket_megabytes * 2**20) // _FLOAT32)
    for bucket in cut(parts, parts[-1].stop, most):
        ready = max(part.ready for part in parts if bucket.start <= part.start < bucket.stop)
        yield bucket.stop - bucket.start, ready if config.train.reduction == "fast" else 1.0


def ready_fraction(name: str, layers: int, head_share: float) -> float:
    """Return the fraction of backward after which the gradient of a parameter is ready, from its name.

    Backward begins with the heads, which take `head_share` of it, and goes from the last layer to the first. The word
    embedding, which the MLM head shares, is ready at the end.
    """
    words = name.split(".")
    if "layer" in words:
        return head_share + (1 - head_share) * (layers - int(words[words.index("layer") + 1])) / layers
    return 1.0 if "embeddings" in words else head_share
