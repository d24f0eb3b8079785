"""Data parallelism in its plainest form. Read this first; `DistributedDataParallel` gives the same sums, sooner.

Every rank holds the whole model and computes the gradients of its own samples. Summed over ranks they are the gradients
of the global batch. The real version adds three things: sums start while backward is still running, parameters travel
together in buckets, and each rank may keep only a shard of the optimizer's state.
"""

from typing import Any

from lucid.backend import array_module
from lucid.distributed.communicators.communicator import Communicator
from lucid.nn.module import Module


class NaiveDataParallel:
    """`module` on all ranks of `communicator`, with the weights of rank 0. No part of lucid trains with it.

    The loss of each rank must be a sum over its samples, weighted by *global* counts: nothing divides the gradients.
    """

    def __init__(self, module: Module, communicator: Communicator) -> None:
        """Take rank 0's weights. All ranks call this."""
        self.module, self._communicator = module, communicator
        for parameter in module.parameters():
            communicator.broadcast(parameter.data)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Call the module."""
        return self.module(*inputs, **options)

    def sum_gradients(self) -> None:
        """Replace each gradient by its sum over ranks. All ranks call this after the last `backward` of a step."""
        for parameter in self.module.parameters():
            if parameter.grad is None:  # this rank's samples did not reach the parameter, but another rank's may have
                parameter.accumulate(array_module(parameter.data).zeros((), parameter.dtype))
            assert parameter.grad is not None
            self._communicator.all_reduce(parameter.grad.data).wait()
