"""Who updates which parameters: the protocol by which optimizers know it, and the case of one process.

`lucid.distributed.parallel.sharding` has the partitions of several ranks.
"""

from typing import Protocol

from lucid.backend import Array
from lucid.nn.parameters import FlatParameters, UpdateSlice


class Partition(Protocol):
    """The slices of `flat` that this process updates, and how processes exchange results.

    All ranks call the methods together. `is_whole` says whether `slices` cover everything.
    """

    flat: FlatParameters
    slices: tuple[UpdateSlice, ...]
    is_whole: bool

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

    is_whole = True

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
