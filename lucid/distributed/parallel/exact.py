"""The exact reduction: one fixed order of additions, so that the number of ranks does not change a single bit.

Floating-point addition is not associative, so a sum over ranks depends on how the terms are grouped. Here the M
micro-batches of a global batch are the leaves of one binary tree: the node of leaves [a, b) adds those of its two
halves, split at the midpoint. Each of R ranks owns M / R adjacent leaves. If R is a power of two that divides M, these
leaves are one subtree, and the ranks' sums are the leaves of the tree above. So every number of ranks adds the same
pairs in the same order. (Adding each micro-batch to the sum of those before it would be another order.)

Within a rank, partial sums wait on a stack until their sibling is complete. Across ranks, the partners are rank XOR 1,
2, 4, ...: the tree joins neighbours first. Each exchange halves the part of the vector that a rank continues with, and
the mirrored exchanges bring the parts together again. This sends as many bytes as an ordinary all-reduce of long
vectors (recursive halving and doubling: Thakur, Rabenseifner & Gropp, 2005, with the distances in reverse order).
"""

from lucid.autograd import after_backward
from lucid.backend import Array, array_module
from lucid.distributed.communicators.communicator import Communicator
from lucid.distributed.parallel.buckets import INTERRUPTED, RunCollective, run_now
from lucid.distributed.parallel.sharding import Replicated, Sharded, wait_for_buckets
from lucid.errors import ConfigError
from lucid.nn.parameters import FlatParameters


def buffers_needed(leaves: int) -> int:
    """Return the most gradient buffers that a rank with `leaves` micro-batches needs: ceil(log2(leaves)) + 1."""
    return (leaves - 1).bit_length() + 1


def completed(leaf: int, leaves: int) -> int:
    """Return how many inner nodes of the tree over `leaves` leaves become complete with leaf number `leaf`.

    Leaves are computed in order, so this is the number of additions that follow the leaf.
    """
    start, stop, additions = 0, leaves, 0
    while stop - start > 1:
        middle = (start + stop) // 2
        if leaf < middle:
            stop, additions = middle, 0
        else:
            start, additions = middle, additions + 1
    return additions


class ExactReduction:
    """Sums the gradients of all backward passes of a step along the tree: `leaves` passes on each rank.

    `begin_step`, or the pass before, chooses the buffer that a pass writes its gradients to. Raises `ConfigError` if
    the number of ranks is not a power of two.
    """

    def __init__(
        self,
        flat: FlatParameters,
        partition: Replicated | Sharded,
        communicator: Communicator,
        leaves: int,
    ) -> None:
        """Listen to the parameters. The sum travels bucket by bucket, to need little memory for what arrives."""
        if communicator.size & (communicator.size - 1):
            raise ConfigError(f"the exact reduction is for 1, 2, 4, 8, ... ranks, not for {communicator.size}")
        self.accumulating = self.aside = False
        self.run_collective: RunCollective = run_now
        self._flat, self._partition, self._communicator = flat, partition, communicator
        self._leaves, self._leaf = leaves, 0
        # Sums of complete nodes that wait for their sibling, and unused buffers.
        self._waiting: list[Array] = []
        self._free: list[Array] = []
        self._current = flat.gradients
        self._in_backward = False
        # Receives what a partner sends. Allocated once: a captured CUDA graph keeps its address.
        longest = max(bucket.stop - bucket.start for bucket in partition.buckets)
        self._incoming = array_module(flat.gradients).empty((longest + 1) // 2, flat.gradients.dtype)
        for parameter in flat.parameters:
            parameter.add_ready_hook(self._on_ready)
        self.begin_step()

    def begin_step(self) -> None:
        """Treat the next backward as the first of a step."""
        if self._in_backward:
            raise RuntimeError(INTERRUPTED)
        self._leaf = 0
        self._free += self._waiting
        self._waiting.clear()
        self._begin_leaf()

    def _on_ready(self) -> None:
        if self.aside:
            return
        if not self._in_backward:
            self._in_backward = True
            after_backward(self._finish_leaf)

    def _finish_leaf(self) -> None:
        """Add the gradients of a backward pass to the tree. After the last one, the flat buffer holds the whole sum."""
        self._in_backward = False
        is_last = self._leaf == self._leaves - 1
        if self.accumulating == is_last:
            raise RuntimeError(
                f"a step has {self._leaves} backward passes in the exact reduction, and all but the last belong in "
                f"accumulate(): number {self._leaf + 1} was {'' if is_last else 'not '}in it"
            )
        self._flat.zero_unset_gradients()
        for _ in range(completed(self._leaf, self._leaves)):
            sibling = self._waiting.pop()
            # The last sum belongs in the flat buffer. The order of the two terms of an addition changes no bit.
            into, other = (self._current, sibling) if is_last else (sibling, self._current)
            into += other
            if other is not self._flat.gradients:
                self._free.append(other)
            self._current = into
        if is_last:
            self._sum_over_ranks()
        else:
            self._waiting.append(self._current)
            self._leaf += 1
            self._begin_leaf()

    def _begin_leaf(self) -> None:
        """Choose where the next backward pass writes: the flat buffer, unless its gradients have to wait there."""
        stays = self._leaf < self._leaves - 1 and completed(self._leaf, self._leaves) == 0
        self._current = self._unused_buffer() if stays else self._flat.gradients
        self._flat.collect_gradients_in(self._current)

    def _unused_buffer(self) -> Array:
        return self._free.pop() if self._free else array_module(self._current).zeros_like(self._flat.gradients)

    def _sum_over_ranks(self) -> None:
        gradients, buckets = self._flat.gradients, self._partition.buckets
        if self._communicator.sums_along_tree(gradients):
            works = [self._partition.sum(bucket) for bucket in range(len(buckets))]
            wait_for_buckets(works, self._partition.status)
            return
        # With a sharded optimizer, too, each rank gets the whole sum: the part that the tree leaves on a rank is not
        # its shard.
        for number, bucket in enumerate(buckets):
            with self._partition.status.of_bucket(number):
                all_reduce(self._communicator, gradients[bucket], self._incoming)


def all_reduce(communicator: Communicator, array: Array, incoming: Array) -> None:
    """Replace `array` [N] by its sum over the ranks of `communicator` along the tree. Blocks as `Work.wait` does.

    `incoming` has at least N / 2 elements, rounded up, of the same dtype. The number of ranks is a power of two.
    """
    start, stop = 0, len(array)
    exchanges: list[tuple[int, slice, slice]] = []
    distance = 1
    while distance < communicator.size:
        middle = (start + stop) // 2
        kept, given = slice(start, middle), slice(middle, stop)
        if communicator.rank & distance:
            kept, given = given, kept
        partner = communicator.rank ^ distance
        received = incoming[: kept.stop - kept.start]
        communicator.send_receive(array[given], received, partner).wait()
        own = array[kept]
        own += received
        exchanges.append((partner, kept, given))
        start, stop = kept.start, kept.stop
        distance *= 2
    for partner, kept, given in reversed(exchanges):
        communicator.send_receive(array[kept], array[given], partner).wait()
