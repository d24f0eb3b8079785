"""Who updates which parameters: the protocol by which optimizers know it, and the case of one process.

`partition_of` finds it for the parameters that a program passes to an optimizer.

`lucid.distributed.parallel.sharding` has the partitions of several ranks.
"""

from typing import Protocol, runtime_checkable

from lucid.backend import Array
from lucid.nn.parameters import FlatParameters, Parameters, UpdateSlice, flatten, named_parameters_of


@runtime_checkable
class Partition(Protocol):
    """The slices of `flat` that this process updates, and how processes exchange results.

    All ranks call the methods together. `is_whole` says whether `slices` cover everything, `publishes_copy` whether
    `publish` is enough for the bfloat16 copy of the values too: the update must then write its own part.
    """

    flat: FlatParameters
    slices: tuple[UpdateSlice, ...]
    is_whole: bool
    publishes_copy: bool

    def complete(self, sums: Array) -> None:
        """Fill in the rows of `sums` [blocks, ...] (float64) that other ranks compute. They are zero before."""

    def publish(self) -> None:
        """Send the values that this rank has updated to all ranks, and receive theirs."""

    def gather(self, state: Array, whole: Array) -> None:
        """Copy `state` of all ranks into `whole` [N] on the first rank. Both are in the host's memory.

        `state` is laid out as `UpdateSlice.state` says, `whole` like the flat buffers.
        """

    def scatter(self, whole: Array | None, state: Array) -> None:
        """Copy each rank's part of `whole` [N] into its `state`: the reverse of `gather`.

        The first rank alone has `whole`. Both are in the host's memory.
        """


class OneProcess:
    """A single process, which updates all of `flat`."""

    is_whole, publishes_copy = True, True

    def __init__(self, flat: FlatParameters) -> None:
        self.flat = flat
        self.slices = tuple(flat.update_slices(0, len(flat.values), state_start=0))

    def complete(self, sums: Array) -> None:
        """Do nothing: there are no other ranks."""

    def publish(self) -> None:
        """Do nothing: there are no other ranks."""

    def gather(self, state: Array, whole: Array) -> None:
        whole[...] = state

    def scatter(self, whole: Array | None, state: Array) -> None:
        assert whole is not None, "there is no other rank"
        state[...] = whole


def partition_of(given: Parameters | Partition) -> Partition:
    """Return the partition of parameters: that of the `DistributedDataParallel` that holds them, or one process.

    Parameters that are not in flat buffers are moved there. A partition is returned as it is. Raises `ValueError` for
    some of the parameters of flat buffers only, and the errors of `named_parameters_of`.
    """
    if isinstance(given, Partition):
        return given
    named = named_parameters_of(given)
    buffers = {id(parameter.flat): parameter.flat for parameter in named.values()}
    flat = next(iter(buffers.values()))
    if len(buffers) > 1 or (flat is not None and set(flat.parameters) != set(named.values())):
        raise ValueError(
            "these are not all parameters of a module that an optimizer or DistributedDataParallel already works on: "
            "pass all of them, and freeze some by requires_grad_(False) before these are made"
        )
    if flat is None:
        flat = flatten(named.items())
    partition: Partition = flat.partition or OneProcess(flat)
    return partition
