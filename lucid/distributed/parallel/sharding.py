"""Who updates what: every rank everything, or each rank a share of its own (ZeRO-1: Rajbhandari et al., 2020, stage 1).

Divided, the gradients of a bucket are reduce-scattered: each rank gets the sum over its share of the bucket alone. It
keeps moments of its shares only, updates the weights there, and the weights are gathered. The shares of a bucket are
whole blocks of the flat buffers, and about as large as each other. Sums over the buffers, such as norms, are made of
sums over blocks, each by the rank whose it is, and added up in the order of blocks: who owns them changes no bit.

The ranks of a node may have the weights in common (`Communicator.allocate_for_node`). None writes while another one
still reads, in backward: a rank updates when it has its sums, and for these all ranks have issued the last bucket,
which they do when the last gradient is there. None reads before all have written: that is what `publish` waits for.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from lucid.backend import CPU, Array, copy, device_of
from lucid.distributed.communicators.communicator import Communicator, Work
from lucid.nn.parameters import FlatParameters, Ownership, Part


class Replicated(Ownership):
    """Every rank updates everything. `buckets` are what is summed over ranks at once: slices of the flat buffers."""

    def __init__(self, flat: FlatParameters, communicator: Communicator, buckets: Sequence[slice]) -> None:
        super().__init__(flat)
        self.buckets = buckets
        self._communicator = communicator
        self._values, self._gradients = flat.values, flat.gradients

    def sum(self, bucket: int) -> Work:
        """Sum the gradients of a bucket, given by its number, over ranks, where this one updates them."""
        return self._communicator.all_reduce(self._gradients[self.buckets[bucket]])

    def gather(self, own: Array, whole: Array) -> None:
        if self._communicator.rank == 0:
            whole[...] = own

    def scatter(self, whole: Array | None, own: Array) -> None:
        if whole is not None:
            copy(whole, own)
        self._communicator.broadcast(own)


class Sharded(Replicated):
    """Every rank updates its share of each bucket."""

    is_whole = False

    def __init__(self, flat: FlatParameters, communicator: Communicator, buckets: Sequence[slice]) -> None:
        super().__init__(flat, communicator, buckets)
        self._bounds = [_shares(flat.bounds, bucket, communicator.size) for bucket in buckets]
        self.parts = tuple(self._parts(flat))

    def _parts(self, flat: FlatParameters) -> Iterator[Part]:
        for elements, own in self._places(self._communicator.rank):
            yield from flat.parts(elements.start, elements.stop, own.start)

    def sum(self, bucket: int) -> Work:
        return self._communicator.reduce_scatter(self._gradients[self.buckets[bucket]], self._bounds[bucket])

    def complete(self, sums: Array) -> None:
        self._communicator.all_reduce(sums).wait()

    def publish(self) -> None:
        buckets = zip(self.buckets, self._bounds, strict=True)
        works = [self._communicator.all_gather(self._values[bucket], bounds) for bucket, bounds in buckets]
        for work in works:
            work.wait()

    def gather(self, own: Array, whole: Array) -> None:
        nothing = np.empty(0, own.dtype)
        works = []
        if self._communicator.rank > 0:
            works = [self._swap(own[place], nothing, 0) for _, place in self._places(self._communicator.rank)]
        else:
            for elements, place in self._places(0):
                whole[elements] = own[place]
            for rank in range(1, self._communicator.size):
                works += [self._swap(nothing, whole[elements], rank) for elements, _ in self._places(rank)]
        for work in works:
            work.wait()

    def scatter(self, whole: Array | None, own: Array) -> None:
        if device_of(own) != CPU:
            on_host = np.empty(own.shape, own.dtype)
            self.scatter(whole, on_host)
            copy(on_host, own)
            return
        nothing = np.empty(0, own.dtype)
        works = []
        if whole is None:
            works = [self._swap(nothing, own[place], 0) for _, place in self._places(self._communicator.rank)]
        else:
            for elements, place in self._places(0):
                own[place] = whole[elements]
            for rank in range(1, self._communicator.size):
                works += [self._swap(whole[elements], nothing, rank) for elements, _ in self._places(rank)]
        for work in works:
            work.wait()

    def _swap(self, outgoing: Array, incoming: Array, rank: int) -> Work:
        return self._communicator.send_receive(outgoing, incoming, rank)

    def _places(self, rank: int) -> Iterator[tuple[slice, slice]]:
        """Yield a rank's shares of the buckets: in the flat buffers, and among all that the rank updates."""
        own = 0
        for bucket, bounds in zip(self.buckets, self._bounds, strict=True):
            start, stop = bucket.start + bounds[rank], bucket.start + bounds[rank + 1]
            yield slice(start, stop), slice(own, own + stop - start)
            own += stop - start


def _shares(block_bounds: Array, bucket: slice, count: int) -> list[int]:
    """Cut a bucket into `count` shares of whole blocks, and return their bounds [count + 1] within it.

    They are as even as blocks allow: each begins with the last block that begins no later than an even share would.
    """
    even = bucket.start + np.arange(count + 1) * (bucket.stop - bucket.start) // count
    blocks = np.searchsorted(block_bounds, even, side="right") - 1
    return (block_bounds[blocks] - bucket.start).tolist()
