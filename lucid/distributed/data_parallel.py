"""Data-parallel training: every rank holds the model, and the gradients are summed over ranks.

How they are summed is the reduction's: fast, while backward goes on (`buckets.py`), or exact, with the same bits on
any number of ranks (`exact.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from lucid.distributed.buckets import BucketedReduction
from lucid.distributed.communicator import Communicator
from lucid.distributed.exact import ExactReduction
from lucid.nn.module import Module
from lucid.nn.parameters import flatten

ModuleT = TypeVar("ModuleT", bound=Module)


class Reduction(Protocol):
    """Listens to backward and leaves the sum over ranks in the flat gradient buffer after the last of a step."""

    # Whether another backward follows in the step.
    accumulating: bool

    def begin_step(self) -> None:
        """Let the next backward be the first of a step."""


class DistributedDataParallel(Generic[ModuleT]):
    """`module` on all ranks of `communicator`, with the weights of rank 0 and, after `backward`, summed gradients.

    The sum is not divided: make the loss of each rank a sum over its samples, weighted by *global* counts. `module`
    keeps its parameters' names, and may be called itself as well. `flat` holds the buffers, for the optimizer.

    A step begins with `zero_grad`. Of several calls of `backward` in a step (micro-batches) all but the last belong in
    `accumulate()`. A parameter that no backward has reached gets a gradient of zero.
    """

    def __init__(
        self,
        module: ModuleT,
        communicator: Communicator,
        bucket_megabytes: float = 25.0,
        exact_micro_batches: int | None = None,
    ) -> None:
        """Flatten `module`, whose parameters are of one dtype, and take rank 0's values. All ranks call this.

        Gradients travel in buckets of at most `bucket_megabytes` (2**20 bytes), or of a single larger parameter.
        `exact_micro_batches` asks for the exact reduction, and says how many calls of `backward` each rank makes in a
        step; `ConfigError` if the number of ranks is not a power of two.
        """
        self.module = module
        self.flat = flatten(module, allocate=communicator.allocate)
        communicator.broadcast(self.flat.values)
        bucket_elements = max(1, int(bucket_megabytes * 2**20) // self.flat.gradients.itemsize)
        self._reduction: Reduction
        if exact_micro_batches is None:
            self._reduction = BucketedReduction(self.flat, communicator, bucket_elements)
        else:
            self._reduction = ExactReduction(self.flat, communicator, exact_micro_batches, bucket_elements)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Call the module."""
        return self.module(*inputs, **options)

    def zero_grad(self) -> None:
        """Forget all gradients, to begin a step."""
        self.flat.zero_grad()
        self._reduction.begin_step()

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Within this, backward adds to this rank's gradients and does not communicate."""
        before, self._reduction.accumulating = self._reduction.accumulating, True
        try:
            yield
        finally:
            self._reduction.accumulating = before
