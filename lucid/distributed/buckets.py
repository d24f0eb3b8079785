"""The fast reduction: gradients are summed over ranks while backward goes on.

The flat gradient buffer lies in about the order in which backward completes it, and is cut into buckets: contiguous
slices of whole parameters. A bucket is all-reduced in place as soon as its last parameter is ready; nothing is packed,
copied or divided. Buckets start strictly in order, so all ranks issue the same collectives in the same order, whatever
the order of events on each. Micro-batches before the last add to this rank's gradients first.
"""

from functools import partial
from itertools import islice

from lucid.autograd import after_backward
from lucid.distributed.communicator import Communicator, Work
from lucid.nn.parameters import FlatParameters, Segment


class BucketedReduction:
    """Sums the gradients of `flat` over ranks during each backward pass that is not `accumulating`."""

    def __init__(self, flat: FlatParameters, communicator: Communicator, bucket_elements: int) -> None:
        """Listen to the parameters. Buckets are of at most `bucket_elements`, or hold a single larger parameter."""
        self.accumulating = False
        self._flat, self._communicator = flat, communicator
        bucket_segments = _cut(flat.segments, bucket_elements)
        self.buckets = [flat.gradients[part[0].start : part[-1].stop] for part in bucket_segments]
        self._bucket_sizes = [len(part) for part in bucket_segments]
        # Of the backward that is running: parameters of each bucket yet to come, and the buckets on their way.
        self._not_ready = self._bucket_sizes.copy()
        self._works: list[Work] = []
        parameters = iter(flat.parameters)
        for bucket, size in enumerate(self._bucket_sizes):
            for parameter in islice(parameters, size):
                parameter.add_ready_hook(partial(self._on_ready, bucket))

    def begin_step(self) -> None:
        """Nothing has to be prepared: backward overwrites what is marked as unset."""

    def _on_ready(self, bucket: int) -> None:
        if self.accumulating:
            return
        if self._not_ready == self._bucket_sizes:
            after_backward(self._finish)
        if self._not_ready[bucket] == 0:
            raise RuntimeError("an earlier backward was interrupted: the gradients of the ranks are out of step")
        self._not_ready[bucket] -= 1
        while len(self._works) < len(self.buckets) and self._not_ready[len(self._works)] == 0:
            self._launch_next()

    def _launch_next(self) -> None:
        self._works.append(self._communicator.all_reduce(self.buckets[len(self._works)]))

    def _finish(self) -> None:
        self._flat.zero_unset_gradients()
        while len(self._works) < len(self.buckets):
            self._launch_next()
        for work in self._works:
            work.wait()
        self._works.clear()
        self._not_ready = self._bucket_sizes.copy()


def _cut(segments: tuple[Segment, ...], bucket_elements: int) -> list[list[Segment]]:
    """Return `segments` in runs that span at most `bucket_elements`, or hold a single larger one."""
    runs = [[segments[0]]]
    for segment in segments[1:]:
        if segment.stop - runs[-1][0].start > bucket_elements:
            runs.append([])
        runs[-1].append(segment)
    return runs
