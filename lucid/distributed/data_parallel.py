"""Data-parallel training: every rank holds the model, and the gradients are summed over ranks during backward.

The flat gradient buffer lies in about the order in which backward completes it, and is cut into buckets: contiguous
slices of whole parameters. A bucket is all-reduced in place as soon as its last parameter is ready, while backward
goes on; nothing is packed, copied or divided. Buckets start strictly in order, so all ranks issue the same
collectives in the same order, whatever the order of events on each.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

from lucid.autograd import after_backward
from lucid.distributed.communicator import Communicator, Work
from lucid.nn.module import Module
from lucid.nn.parameters import Segment, flatten

ModuleT = TypeVar("ModuleT", bound=Module)


class DistributedDataParallel(Generic[ModuleT]):
    """`module` on all ranks of `communicator`, with the weights of rank 0 and, after `backward`, summed gradients.

    The sum is not divided: make the loss of each rank a sum over its samples, weighted by *global* counts. `module`
    keeps its parameters' names, and may be called itself as well. `flat` holds the buffers, for the optimizer.

    Of several calls of `backward` between two steps (micro-batches) all but the last belong in `accumulate()`. A
    parameter that no backward has reached gets a gradient of zero.
    """

    def __init__(self, module: ModuleT, communicator: Communicator, bucket_megabytes: float = 25.0) -> None:
        """Flatten `module`, whose parameters are of one dtype, and take rank 0's values. All ranks call this.

        Buckets are of at most `bucket_megabytes` (2**20 bytes), unless a single parameter is larger.
        """
        self.module = module
        self.flat = flatten(module, allocate=communicator.allocate)
        communicator.broadcast(self.flat.values)
        self._communicator = communicator
        self._accumulating = False
        bucket_segments = _cut(self.flat.segments, int(bucket_megabytes * 2**20) // self.flat.gradients.itemsize)
        self._buckets = [self.flat.gradients[part[0].start : part[-1].stop] for part in bucket_segments]
        self._bucket_sizes = [len(part) for part in bucket_segments]
        # Of the backward that is running: parameters of each bucket yet to come, and the buckets on their way.
        self._not_ready = self._bucket_sizes.copy()
        self._works: list[Work] = []
        parameters = iter(self.flat.parameters)
        for bucket, size in enumerate(self._bucket_sizes):
            for parameter in islice(parameters, size):
                parameter.add_ready_hook(partial(self._on_ready, bucket))

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Call the module."""
        return self.module(*inputs, **options)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Within this, backward adds to this rank's gradients and does not communicate."""
        before, self._accumulating = self._accumulating, True
        try:
            yield
        finally:
            self._accumulating = before

    def _on_ready(self, bucket: int) -> None:
        if self._accumulating:
            return
        if self._not_ready == self._bucket_sizes:
            after_backward(self._finish)
        if self._not_ready[bucket] == 0:
            raise RuntimeError("an earlier backward was interrupted: the gradients of the ranks are out of step")
        self._not_ready[bucket] -= 1
        while len(self._works) < len(self._buckets) and self._not_ready[len(self._works)] == 0:
            self._launch_next()

    def _launch_next(self) -> None:
        self._works.append(self._communicator.all_reduce(self._buckets[len(self._works)]))

    def _finish(self) -> None:
        self.flat.zero_unset_gradients()
        while len(self._works) < len(self._buckets):
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
