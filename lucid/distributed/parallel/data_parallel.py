"""Data-parallel training: every rank holds the model, and the gradients are summed over ranks.

How they are summed is the reduction's: fast, while backward goes on (`buckets.py`), or exact, with the same bits on
any number of ranks (`exact.py`). Who updates what, and so who gets which sums, is in `sharded.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from lucid.backend import device_of
from lucid.distributed.communicators.communicator import Communicator
from lucid.distributed.parallel.buckets import BucketedReduction, RunCollective, cut
from lucid.distributed.parallel.exact import ExactReduction
from lucid.distributed.parallel.sharding import Replicated, Sharded
from lucid.nn.module import Module
from lucid.nn.parameters import flatten

ModuleT = TypeVar("ModuleT", bound=Module)


class Reduction(Protocol):
    """Listens to backward and leaves the sum over ranks in the flat gradient buffer after the last of a step."""

    # Whether another backward follows in the step.
    accumulating: bool
    # Does what communicates: at once, unless the backward that is running is recorded.
    run_collective: RunCollective

    def begin_step(self) -> None:
        """Let the next backward be the first of a step."""


class DistributedDataParallel(Generic[ModuleT]):
    """`module` on all ranks of `communicator`, with the weights of rank 0 and, after `backward`, summed gradients.

    The sum is not divided: make the loss of each rank a sum over its samples, weighted by *global* counts. `module`
    keeps its parameters' names, and may be called itself as well. `flat` holds the buffers, for the optimizer.

    With `sharded`, each rank has the summed gradients only where it is the one to update, and the optimizer's `step`
    brings the weights together; its state is divided, and the ranks of a node share one copy of the weights.

    A step begins with `zero_grad`. Of several calls of `backward` in a step (micro-batches) all but the last belong in
    `accumulate()`. A parameter that `backward` has not reached gets a gradient of zero.
    """

    def __init__(
        self,
        module: ModuleT,
        communicator: Communicator,
        bucket_megabytes: float = 25.0,
        exact_micro_batches: int | None = None,
        sharded: bool = False,
        bfloat16_copy: bool = False,
    ) -> None:
        """Flatten `module`, all of one dtype and on the communicator's device, and take rank 0's values.

        All ranks call this. Raises `ValueError` if the parameters are elsewhere.

        Gradients travel in buckets of at most `bucket_megabytes` (2**20 bytes), or of a single larger parameter.
        `exact_micro_batches` asks for the exact reduction, and says how many calls of `backward` each rank makes in a
        step; `ConfigError` if the number of ranks is not a power of two. With `bfloat16_copy` the values have a
        copy in bfloat16: see `flatten`.
        """
        self.module = module
        sharded = sharded and communicator.size > 1
        for name, parameter in module.named_parameters():
            if device_of(parameter.data) != communicator.device:
                raise ValueError(f"{name} is on {device_of(parameter.data)}, the communicator on {communicator.device}")
        # Before the values may be the same memory for several ranks, which then all write the same.
        for parameter in module.parameters():
            communicator.broadcast(parameter.data)
        allocate_values = communicator.allocate_for_node if sharded else communicator.allocate
        self.flat = flat = flatten(module, communicator.allocate, allocate_values, bfloat16_copy)
        communicator.barrier()
        bucket_elements = max(1, int(bucket_megabytes * 2**20) // flat.gradients.itemsize)
        buckets = cut(flat, bucket_elements)
        self.partition = (Sharded if sharded else Replicated)(flat, communicator, buckets)
        self._reduction: Reduction
        if exact_micro_batches is None:
            self._reduction = BucketedReduction(flat, self.partition)
        else:
            self._reduction = ExactReduction(flat, self.partition, communicator, exact_micro_batches)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Call the module."""
        return self.module(*inputs, **options)

    @property
    def is_exact(self) -> bool:
        """Whether gradients are summed by the exact reduction."""
        return isinstance(self._reduction, ExactReduction)

    def zero_grad(self) -> None:
        """Forget all gradients, to begin a step."""
        self.flat.zero_grad()
        self._reduction.begin_step()

    @contextmanager
    def collectives_run_by(self, run: RunCollective) -> Iterator[None]:
        """Within this, what backward communicates is given to `outside`, to do it in order, now or after backward.

        The exact reduction has done it by then.
        """
        before, self._reduction.run_collective = self._reduction.run_collective, run
        try:
            yield
        finally:
            self._reduction.run_collective = before

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Within this, backward adds to this rank's gradients and does not communicate."""
        before, self._reduction.accumulating = self._reduction.accumulating, True
        try:
            yield
        finally:
            self._reduction.accumulating = before
