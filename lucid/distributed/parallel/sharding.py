"""Who updates which parameters: every rank all of them, or each rank a shard (ZeRO-1: Rajbhandari et al., 2020).

Both classes are partitions as optimizers know them (`lucid.optim.partition.Partition`), and sum the gradients of a
bucket where they are needed.

A sharded optimizer reduce-scatters the gradients of a bucket: each rank gets the sums of its shard of the bucket alone.
It keeps the optimizer's state for its shards only and updates the weights there; then all ranks gather the weights. The
shards of a bucket are whole blocks of the flat buffers, and of about equal size. Sums over the buffers, such as norms,
are sums of block sums, added in the order of blocks. So it changes no bit which rank computes a block's sum.

The ranks of a node may share one copy of the weights (`Communicator.allocate_for_node`). No rank writes weights that
another still reads in backward: a rank updates once it has its sums, and it has these only after all ranks have issued
the last bucket, with their last gradient. No rank reads weights before all are written: `publish` waits for that.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lucid.backend import Array
from lucid.distributed.communicators.communicator import Communicator, Work
from lucid.distributed.communicators.status_writer import StatusWriter
from lucid.nn.parameters import FlatParameters


class Replicated:
    """Every rank updates everything. `buckets` are the slices of the flat buffers that are summed at once."""

    is_whole, publishes_copy = True, True

    def __init__(self, flat: FlatParameters, communicator: Communicator, buckets: Sequence[slice]) -> None:
        self.flat, self.buckets = flat, buckets
        self.slices = tuple(flat.update_slices(0, len(flat.values), state_start=0))
        self._communicator, self.status = communicator, communicator.status

    def sum(self, bucket: int) -> Work:
        """Start the sum over ranks of the gradients of a bucket, given by its number."""
        with self.status.of_bucket(bucket):
            return self._communicator.all_reduce(self.flat.gradients[self.buckets[bucket]])

    def complete(self, sums: Array) -> None:
        """Do nothing: every rank has computed all sums."""

    def publish(self) -> None:
        """Do nothing: every rank has updated all values."""

    def gather(self, state: Array, whole: Array) -> None:
        if self._communicator.rank == 0:
            whole[...] = state

    def scatter(self, whole: Array | None, state: Array) -> None:
        if whole is not None:
            state[...] = whole
        self._communicator.broadcast(state)


class Sharded:
    """Every rank updates its shard of each bucket."""

    is_whole = False

    def __init__(self, flat: FlatParameters, communicator: Communicator, buckets: Sequence[slice]) -> None:
        self.flat, self.buckets = flat, buckets
        self._communicator, self.status = communicator, communicator.status
        # Unless one node shares the copy, each rank rounds all weights: between nodes and on GPUs that takes less time.
        copy = flat.bfloat16_copy
        self.publishes_copy = copy is not None and communicator.node_count == 1 and communicator.shares_with_node(copy)
        self._bounds = [_shard_bounds(flat.bounds, bucket, communicator.size) for bucket in buckets]
        own = self._shards(communicator.rank)
        self.slices = tuple(s for shard, state in own for s in flat.update_slices(shard.start, shard.stop, state.start))

    def sum(self, bucket: int) -> Work:
        """Start the sum over ranks of the gradients of a bucket: each rank gets it for its shard."""
        with self.status.of_bucket(bucket):
            return self._communicator.reduce_scatter(self.flat.gradients[self.buckets[bucket]], self._bounds[bucket])

    def complete(self, sums: Array) -> None:
        self._communicator.all_reduce(sums).wait()

    def publish(self) -> None:
        self._all_gather(self.flat.values, 1)
        if self.publishes_copy and self.flat.bfloat16_copy is not None:
            # Communicators know no bfloat16: each number is two bytes.
            self._all_gather(self.flat.bfloat16_copy.view(np.uint8), 2)

    def _all_gather(self, buffer: Array, numbers: int) -> None:
        """Gather the shards of a buffer that has so many numbers for each element."""
        works = []
        for bucket, bounds in zip(self.buckets, self._bounds, strict=True):
            part = buffer[bucket.start * numbers : bucket.stop * numbers]
            works.append(self._communicator.all_gather(part, [bound * numbers for bound in bounds]))
        wait_for_buckets(works, self.status)

    def gather(self, state: Array, whole: Array) -> None:
        if self._communicator.rank == 0:
            for shard, part in self._shards(0):
                whole[shard] = state[part]
            _wait(self._receive(whole[shard], rank) for rank, shard in self._shards_of_others())
        else:
            _wait(self._send(state[part], 0) for _, part in self._shards(self._communicator.rank))

    def scatter(self, whole: Array | None, state: Array) -> None:
        if whole is not None:
            for shard, part in self._shards(0):
                state[part] = whole[shard]
            _wait(self._send(whole[shard], rank) for rank, shard in self._shards_of_others())
        else:
            _wait(self._receive(state[part], 0) for _, part in self._shards(self._communicator.rank))

    def _send(self, array: Array, rank: int) -> Work:
        return self._communicator.send_receive(array, array[:0].copy(), rank)

    def _receive(self, array: Array, rank: int) -> Work:
        return self._communicator.send_receive(array[:0].copy(), array, rank)

    def _shards_of_others(self) -> Iterator[tuple[int, slice]]:
        """Yield the ranks but the first, with each of their shards."""
        for rank in range(1, self._communicator.size):
            for shard, _ in self._shards(rank):
                yield rank, shard

    def _shards(self, rank: int) -> Iterator[tuple[slice, slice]]:
        """Yield a rank's shards of the buckets: their elements in the flat buffers, and in the optimizer's state."""
        state = 0
        for bucket, bounds in zip(self.buckets, self._bounds, strict=True):
            start, stop = bucket.start + bounds[rank], bucket.start + bounds[rank + 1]
            yield slice(start, stop), slice(state, state + stop - start)
            state += stop - start


def wait_for_buckets(works: Iterable[Work], status: StatusWriter) -> None:
    """Wait for the works of all buckets, in their order. `status` says for which one."""
    for bucket, work in enumerate(works):
        with status.of_bucket(bucket):
            work.wait()


def _wait(works: Iterable[Work]) -> None:
    """Start all of `works`, then wait for each."""
    for work in list(works):
        work.wait()


def _shard_bounds(block_bounds: Array, bucket: slice, count: int) -> list[int]:
    """Cut a bucket into `count` shards of whole blocks, and return their bounds [count + 1] within it.

    They are as even as blocks allow: each begins with the last block that begins no later than an even shard would.
    """
    even = bucket.start + np.arange(count + 1) * (bucket.stop - bucket.start) // count
    blocks = np.searchsorted(block_bounds, even, side="right") - 1
    return (block_bounds[blocks] - bucket.start).tolist()
