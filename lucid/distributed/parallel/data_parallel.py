"""Data-parallel training: every rank holds the model, and the gradients are summed over ranks.

`naive.py` shows the idea. Here a reduction sums the gradients: the fast one while backward is running (`buckets.py`),
or the exact one, which gives the same bits on any number of ranks (`exact.py`). The partition (`sharding.py`) says
which parameters each rank updates, and therefore which sums it needs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from lucid.backend import CPU, Array, device_of
from lucid.distributed.communicators.communicator import Communicator
from lucid.distributed.parallel.buckets import BucketedReduction, RunCollective, cut
from lucid.distributed.parallel.exact import ExactReduction
from lucid.distributed.parallel.sharding import Replicated, Sharded
from lucid.nn.module import Module, ModuleParameters
from lucid.nn.parameters import flatten

ModuleT = TypeVar("ModuleT", bound=Module)


class Reduction(Protocol):
    """Listens to backward. After the last pass of a step, the flat gradient buffer holds the sums over ranks."""

    # Whether another backward follows in the step.
    accumulating: bool
    # Whether backward belongs to no step, so that the reduction does not listen.
    aside: bool
    # Calls the functions that communicate: at once, unless the running backward is being recorded.
    run_collective: RunCollective

    def begin_step(self) -> None:
        """Treat the next backward as the first of a step."""


class DistributedDataParallel(Generic[ModuleT]):
    """`module` on all ranks of `communicator`, with the weights of rank 0 and, after `backward`, summed gradients.

    Nothing divides the sum: the loss of each rank must be a sum over its samples, weighted by *global* counts. `module`
    keeps the names of its parameters, and callers may also call it directly. `flat` holds the buffers, and `partition`
    what this rank updates. An optimizer that gets the parameters finds it.

    With `sharded`, each rank gets the summed gradients only of the parameters that it updates, keeps the optimizer's
    state for these alone, and the optimizer's `step` sends the new weights to all. The ranks of a node share one copy
    of the weights.

    A step begins with `zero_grad`. If a step calls `backward` several times (micro-batches), all calls but the last
    belong in `accumulate()`. A parameter that `backward` did not reach gets a gradient of zero.
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

        All ranks call this. Raises `ValueError` if the parameters are on another device, and `RuntimeError` if an
        optimizer or another `DistributedDataParallel` has their flat buffers already.

        Gradients travel in buckets of at most `bucket_megabytes` (2**20 bytes); a larger parameter is a bucket of its
        own. `exact_micro_batches` selects the exact reduction, with so many calls of `backward` a step on each rank; it
        raises `ConfigError` if the number of ranks is not a power of two. With `bfloat16_copy` the values have a
        copy in bfloat16: see `flatten`.
        """
        self.module = module
        sharded = sharded and communicator.size > 1
        for name, parameter in module.named_parameters():
            if device_of(parameter.data) != communicator.device:
                raise ValueError(f"{name} is on {device_of(parameter.data)}, the communicator on {communicator.device}")
        # This comes before `flatten`, which may move the values of several ranks into one memory.
        for parameter in module.parameters():
            communicator.broadcast(parameter.data)
        allocate_values = communicator.allocate_for_node if sharded else communicator.allocate
        shares_copy = sharded and communicator.node_count == 1 and communicator.device == CPU
        allocate_copy = partial(communicator.allocate_for_node, is_copy=True) if shares_copy else None
        self.flat = flat = flatten(module, communicator.allocate, allocate_values, bfloat16_copy, allocate_copy)
        communicator.barrier()
        bucket_bytes = int(min(bucket_megabytes * 2**20, flat.gradients.nbytes))
        bucket_elements = max(1, bucket_bytes // flat.gradients.itemsize)
        buckets = cut(flat.segments, len(flat.gradients), bucket_elements)
        self.partition = flat.partition = (Sharded if sharded else Replicated)(flat, communicator, buckets)
        self._reduction: Reduction
        if exact_micro_batches is None:
            self._reduction = BucketedReduction(flat, self.partition)
        else:
            self._reduction = ExactReduction(flat, self.partition, communicator, exact_micro_batches)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Call the module."""
        return self.module(*inputs, **options)

    def parameters(self) -> ModuleParameters:
        """Return an iterator over the parameters of the module, for an optimizer."""
        return self.module.parameters()

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
        """Within the block, pass the functions by which backward communicates to `run` instead of calling them.

        `run` must call them in order, now or after backward. The exact reduction does not use `run`.
        """
        before, self._reduction.run_collective = self._reduction.run_collective, run
        try:
            yield
        finally:
            self._reduction.run_collective = before

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Within the block, backward adds to this rank's gradients and does not communicate."""
        before, self._reduction.accumulating = self._reduction.accumulating, True
        try:
            yield
        finally:
            self._reduction.accumulating = before

    @contextmanager
    def aside(self, buffer: Array) -> Iterator[None]:
        """Within the block, one backward writes this rank's gradients to `buffer` [N], laid out like `flat.gradients`.

        It does not communicate and belongs to no step. So the block stands between two steps. The parameters have no
        gradients afterwards, but `flat.gradients` keeps those of the step before.
        """
        self._reduction.aside = True
        self.flat.collect_gradients_in(buffer)
        try:
            yield
            self.flat.zero_unset_gradients()
        finally:
            self.flat.collect_gradients_in(self.flat.gradients)
            self._reduction.aside = False
