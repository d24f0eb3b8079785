"""The fast reduction: it sums gradients over ranks while backward is still running.

The flat gradient buffer is in about the order in which backward completes it. It is cut into buckets: contiguous slices
of whole parameters. The sum of a bucket starts as soon as its last parameter is ready, in place: nothing is packed,
copied or divided. Buckets start strictly in order, so all ranks issue the same collectives in the same order, even if
their parameters become ready in different orders. The micro-batches before the last only add to this rank's gradients.

A backward pass leaves a gradient for every parameter: zeros where it did not reach one. So whether a pass overwrites or
adds depends only on the number of its micro-batch, and a recorded pass (`training/graphs.py`) may be replayed for that
micro-batch of any step.
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Protocol

from lucid.autograd import after_backward
from lucid.distributed.communicators.communicator import Work
from lucid.distributed.parallel.sharding import Replicated, Sharded, wait_for_buckets
from lucid.nn.parameters import FlatParameters

# Calls a function that communicates, now or later.
RunCollective = Callable[[Callable[[], None]], None]

INTERRUPTED = "an earlier backward was interrupted: the gradients of the ranks are out of step"


class Extent(Protocol):
    """The elements [start, stop) of the flat buffers."""

    @property
    def start(self) -> int:
        """The first element."""

    @property
    def stop(self) -> int:
        """The end."""


class BucketedReduction:
    """Sums the gradients of `flat` over ranks during each backward pass that is not `accumulating`."""

    def __init__(self, flat: FlatParameters, partition: Replicated | Sharded) -> None:
        """Listen to the parameters. The buckets are those of `partition`, which come from `cut`."""
        self.accumulating = self.aside = False
        self.run_collective: RunCollective = run_now
        self._flat, self._partition = flat, partition
        self._bucket_sizes = [0] * len(partition.buckets)
        bucket = 0
        for segment, parameter in zip(flat.segments, flat.parameters, strict=True):
            bucket += segment.start == partition.buckets[bucket].stop
            self._bucket_sizes[bucket] += 1
            parameter.add_ready_hook(partial(self._on_ready, bucket))
        # In the backward that is running: how many parameters of each bucket are not ready, and the sums under way.
        # Between two passes no parameter is ready, and no sum is under way.
        self._not_ready = self._bucket_sizes.copy()
        self._works: list[Work] = []
        # Buckets whose launch was handed to `run_collective`, which may run it later.
        self._handed_over = 0

    def begin_step(self) -> None:
        """Check that no backward is half done. The next one overwrites the gradients that are not set."""
        if self._works or self._not_ready != self._bucket_sizes:
            raise RuntimeError(INTERRUPTED)

    def _on_ready(self, bucket: int) -> None:
        if self.aside:
            return
        begins = self._not_ready == self._bucket_sizes
        if (begins and self._works) or self._not_ready[bucket] == 0:
            raise RuntimeError(INTERRUPTED)
        if begins:
            after_backward(self._end_pass)
        self._not_ready[bucket] -= 1
        if self.accumulating:
            return
        while self._handed_over < len(self._not_ready) and self._not_ready[self._handed_over] == 0:
            self._handed_over += 1
            self.run_collective(self._launch_next)

    def _launch_next(self) -> None:
        self._works.append(self._partition.sum(len(self._works)))

    def _end_pass(self) -> None:
        self._flat.zero_unset_gradients()
        self._not_ready, self._handed_over = self._bucket_sizes.copy(), 0
        if not self.accumulating:
            self.run_collective(self._finish)

    def _finish(self) -> None:
        """Wait for all buckets.

        A replay of a recorded step runs this and `_launch_next` again, but not backward's Python. So neither may depend
        on state that backward sets.
        """
        while len(self._works) < len(self._bucket_sizes):
            self._launch_next()
        wait_for_buckets(self._works, self._partition.status)
        self._works.clear()


def run_now(action: Callable[[], None]) -> None:
    """Call `action` at once."""
    action()


def cut(segments: Iterable[Extent], end: int, bucket_elements: int) -> list[slice]:
    """Cut flat buffers of `end` elements into buckets of at most `bucket_elements`, at the starts of `segments`.

    A larger segment is a bucket of its own. The gap behind a segment belongs to its bucket.
    """
    starts = [0]
    for segment in segments:
        if segment.stop - starts[-1] > bucket_elements and segment.start > starts[-1]:
            starts.append(segment.start)
    return [slice(start, stop) for start, stop in pairwise([*starts, end])]
