"""The communicator for GPUs that reach each other by the host only: arrays are copied there, sent, and copied back.

It serves where NCCL cannot: several ranks on one GPU, or no NCCL. The host waits for the GPU before it sends, and the
GPU for the host: a CUDA graph cannot hold these collectives.

An array that `allocate` gave out has its likeness in what the host's communicator allocates, and so in memory that the
ranks of a node share, if it does that; it is made when the array is first summed or gathered. Other arrays go through
page-locked buffers, which CuPy keeps for the next of their size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy.typing as npt

from lucid.backend import CPU, Array, address, copy, device_of, page_locked, synchronise, to_host, zeros
from lucid.distributed.communicators.communicator import (
    Communicator,
    SideChannel,
    Work,
    check_array,
    check_parts,
    check_rank,
    check_swap,
)
from lucid.distributed.communicators.rank_status import Whereabouts

Allocate = Callable[[int, npt.DTypeLike], Array]


@dataclass
class _Allocated:
    """Memory on the GPU that was given out, what allocates its likeness on the host, and that, once it is there."""

    array: Array
    on_host: Allocate
    likeness: Array | None = None


class StagedCommunicator(Communicator):
    """The ranks of `host`, whose arrays are on `device` ("cuda:N"), the current one. It ends with `host`."""

    def __init__(self, host: Communicator, device: str) -> None:
        self.rank, self.size = host.rank, host.size
        self.local_rank, self.node_count = host.local_rank, host.node_count
        self.whereabouts: Whereabouts = host.whereabouts
        self.device = device
        self._host = host
        self._allocated: list[_Allocated] = []

    def all_reduce(self, array: Array) -> Work:
        if device_of(array) == CPU:
            return self._host.all_reduce(array)
        check_array("array", array, self.device)
        staged = self._likeness(array)
        copy(array, staged)
        return _Staged(self._host.all_reduce(staged), staged, array)

    def reduce_scatter(self, array: Array, bounds: Sequence[int]) -> Work:
        if device_of(array) == CPU:
            return self._host.reduce_scatter(array, bounds)
        check_parts(array, bounds, self.size, self.device)
        staged = self._likeness(array)
        copy(array, staged)
        return _Staged(self._host.reduce_scatter(staged, bounds), *self._own(bounds, staged, array))

    def all_gather(self, array: Array, bounds: Sequence[int]) -> Work:
        if device_of(array) == CPU:
            return self._host.all_gather(array, bounds)
        check_parts(array, bounds, self.size, self.device)
        staged = self._likeness(array)
        copy(*self._own(bounds, array, staged))
        return _Staged(self._host.all_gather(staged, bounds), staged, array)

    def send_receive(self, outgoing: Array, incoming: Array, peer: int) -> Work:
        if device_of(outgoing) == CPU:
            return self._host.send_receive(outgoing, incoming, peer)
        check_swap(outgoing, incoming, self.device)
        check_rank("peer", peer, self.size)
        sent, received = _buffer(outgoing), _buffer(incoming)
        copy(outgoing, sent)
        return _Staged(self._host.send_receive(sent, received, peer), received, incoming)

    def broadcast(self, array: Array, root: int = 0) -> None:
        if device_of(array) == CPU:
            self._host.broadcast(array, root)
            return
        check_array("array", array, self.device)
        staged = to_host(array)
        self._host.broadcast(staged, root)
        copy(staged, array)

    def barrier(self) -> None:
        self._host.barrier()

    def all_reduce_scalar(self, value: float) -> float:
        return self._host.all_reduce_scalar(value)

    def allocate(self, count: int, dtype: npt.DTypeLike) -> Array:
        return self._allocate(count, dtype, self._host.allocate)

    def allocate_for_node(self, count: int, dtype: npt.DTypeLike) -> Array:
        """Return zeros [count] of this rank's own, the likeness of which may be one for all ranks of the node."""
        return self._allocate(count, dtype, self._host.allocate_for_node)

    def sums_along_tree(self, array: Array) -> bool:
        return self._host.sums_along_tree(array if device_of(array) == CPU else self._likeness(array))

    def side_channel(self) -> SideChannel | None:
        return self._host.side_channel()

    def failure(self) -> str:
        return self._host.failure()

    def abort(self, code: int) -> NoReturn:
        self._host.abort(code)

    def close(self) -> None:
        self._host.close()

    def _allocate(self, count: int, dtype: npt.DTypeLike, on_host: Allocate) -> Array:
        self._allocated.append(_Allocated(zeros(count, dtype, self.device), on_host))
        return self._allocated[-1].array

    def _likeness(self, array: Array) -> Array:
        """Return the host's memory for `array`: a part of what was allocated there as well, or a buffer."""
        for allocated in self._allocated:
            whole = allocated.array
            start = address(array) - address(whole)
            # CuPy gives all empty arrays one address.
            if array.size and start >= 0 and start + array.nbytes <= whole.nbytes:
                if allocated.likeness is None:
                    allocated.likeness = allocated.on_host(whole.size, whole.dtype)
                first = start // whole.itemsize
                return allocated.likeness[first : first + array.size].reshape(array.shape)
        return _buffer(array)

    def _own(self, bounds: Sequence[int], *arrays: Array) -> Iterator[Array]:
        """Yield the parts of `arrays` that are this rank's."""
        for array in arrays:
            yield array.reshape(-1)[bounds[self.rank] : bounds[self.rank + 1]]


class _Staged:
    """A communication between the hosts, as a `Work` whose result is copied to a GPU."""

    def __init__(self, work: Work, result: Array, target: Array) -> None:
        self._work: Work | None = work
        self._result, self._target = result, target

    def wait(self) -> None:
        if self._work is not None:
            self._work.wait()
            copy(self._result, self._target)
            # The memory of a buffer may be given out again from here on.
            synchronise()
            self._work = None


def _buffer(array: Array) -> Array:
    """Return page-locked memory of the host for `array`."""
    return page_locked(array.nbytes).view(array.dtype).reshape(array.shape)
