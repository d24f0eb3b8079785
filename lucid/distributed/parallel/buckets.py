"""The fast reduction: gradients are summed over ranks while backward goes on.

The flat gradient buffer lies in about the order in which backward completes it, and is cut into buckets: contiguous
slices of whole parameters. A bucket is summed in place as soon as its last parameter is ready; nothing is packed,
copied or divided. Buckets start strictly in order, so all ranks issue the same collectives in the same order, whatever
the order of events on each. Micro-batches before the last add to this rank's gradients first.

A backward pass leaves a gradient for every parameter: zeros where it has not been. So whether a pass overwrites or adds
depends on its place in the step alone, and a recorded pass (`training/graphs.py`) may be repeated at that place.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

from lucid.autograd import after_backward
from lucid.distributed.communicators.communicator import Work
from lucid.distributed.parallel.sharding import Replicated, Sharded
from lucid.nn.parameters import FlatParameters

# Does something that communicates, now or wherever it belongs.
RunCollective = Callable[[Callable[[], None]], None]


class BucketedReduction:
    """Sums the gradients of `flat` over ranks during each backward pass that is not `accumulating`."""

    def __init__(self, flat: FlatParameters, partition: Replicated | Sharded) -> None:
        """Listen to the parameters. The buckets are those of `partition`, as of `cut`."""
        self.accumulating = False
        self.run_collective: RunCollective = run_now
        self._flat, self._partition = flat, partition
        self._bucket_sizes = [0] * len(partition.buckets)
        bucket = 0
        for segment, parameter in zip(flat.segments, flat.parameters, strict=True):
            bucket += segment.start == partition.buckets[bucket].stop
            self._bucket_sizes[bucket] += 1
            parameter.add_ready_hook(partial(self._on_ready, bucket))
        # Of the backward that is running: parameters of each bucket yet to come, and the buckets on their way. Between
        # two passes all are yet to come, and none is on its way.
        self._not_ready = self._bucket_sizes.copy()
        self._works: list[Work] = []
        # Buckets that `outside` was asked to launch, which may do it later.
        self._asked = 0

    def begin_step(self) -> None:
        """Nothing has to be prepared: backward overwrites what is marked as unset."""

    def _on_ready(self, bucket: int) -> None:
        begins = self._not_ready == self._bucket_sizes
        if (begins and self._works) or self._not_ready[bucket] == 0:
            raise RuntimeError("an earlier backward was interrupted: the gradients of the ranks are out of step")
        if begins:
            after_backward(self._end_pass)
        self._not_ready[bucket] -= 1
        if self.accumulating:
            return
        while self._asked < len(self._not_ready) and self._not_ready[self._asked] == 0:
            self._asked += 1
            self.run_collective(self._launch_next)

    def _launch_next(self) -> None:
        self._works.append(self._partition.sum(len(self._works)))

    def _end_pass(self) -> None:
        self._flat.zero_unset_gradients()
        self._not_ready, self._asked = self._bucket_sizes.copy(), 0
        if not self.accumulating:
            self.run_collective(self._finish)

    def _finish(self) -> None:
        """Wait for all buckets. A replay repeats this and `_launch_next`: they look at nothing that backward marks."""
        while len(self._works) < len(self._bucket_sizes):
            self._launch_next()
        for work in self._works:
            work.wait()
        self._works.clear()


def run_now(action: Callable[[], None]) -> None:
    """Do what backward communicates when it is due."""
    action()


def cut(flat: FlatParameters, bucket_elements: int) -> list[slice]:
    """Cut the flat buffers into buckets of at most `bucket_elements`, or of a single larger parameter.

    The gap behind a parameter goes with it.
    """
    starts = [0]
    for segment in flat.segments:
        if segment.stop - starts[-1] > bucket_elements and segment.start > starts[-1]:
            starts.append(segment.start)
    return [slice(start, stop) for start, stop in pairwise([*starts, len(flat.gradients)])]
