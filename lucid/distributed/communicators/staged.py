"""The communicator for GPUs without NCCL: it copies arrays to the host's memory, sends them, and copies them back.

It serves several ranks that share one GPU, and machines without NCCL. The host waits for the GPU before it sends, and
the GPU for the host, so a CUDA graph cannot hold these collectives.

Each array from `allocate` has a counterpart that the host's communicator allocates, which may be in memory that the
ranks of a node share. It is made when the array is first summed or gathered. Other arrays go through page-locked
buffers, which CuPy keeps and reuses for arrays of the same size.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy.typing as npt

from lucid.backend import CPU, Array, address, copy, device_of, page_locked, synchronise, to_host, zeros
from lucid.distributed.communicators.communicator import (
    Communicator,
    Work,
    check_array,
    check_parts,
    check_rank,
    check_swap,
)
from lucid.distributed.communicators.layered import LayeredCommunicator

Allocate = Callable[[int, npt.DTypeLike], Array]


@dataclass
class _Allocated:
    """An array of the GPU from `allocate`, as long as it is in use, and its counterpart on the host, once there is one.

    Views of the array keep it in use.
    """

    array: weakref.ref[Array]
    allocate_on_host: Allocate
    on_host: Array | None = None


class StagedCommunicator(LayeredCommunicator):
    """The ranks of `host`, with arrays on `device` ("cuda:N"), the current GPU. It closes with `host`."""

    def __init__(self, host: Communicator, device: str) -> None:
        super().__init__(host)
        self.device = device
        self._allocated: list[_Allocated] = []

    def all_reduce(self, array: Array) -> Work:
        if device_of(array) == CPU:
            return self._base.all_reduce(array)
        check_array("array", array, self.device)
        staged = self._host_array(array)
        copy(array, staged)
        return _Staged(self._base.all_reduce(staged), staged, array)

    def reduce_scatter(self, array: Array, bounds: Sequence[int]) -> Work:
        if device_of(array) == CPU:
            return self._base.reduce_scatter(array, bounds)
        check_parts(array, bounds, self.size, self.device)
        staged = self._host_array(array)
        copy(array, staged)
        return _Staged(self._base.reduce_scatter(staged, bounds), *self._own(bounds, staged, array))

    def all_gather(self, array: Array, bounds: Sequence[int]) -> Work:
        if device_of(array) == CPU:
            return self._base.all_gather(array, bounds)
        check_parts(array, bounds, self.size, self.device)
        staged = self._host_array(array)
        copy(*self._own(bounds, array, staged))
        return _Staged(self._base.all_gather(staged, bounds), staged, array)

    def send_receive(self, outgoing: Array, incoming: Array, peer: int) -> Work:
        if device_of(outgoing) == CPU:
            return self._base.send_receive(outgoing, incoming, peer)
        check_swap(outgoing, incoming, self.device)
        check_rank("peer", peer, self.size)
        sent, received = _buffer(outgoing), _buffer(incoming)
        copy(outgoing, sent)
        return _Staged(self._base.send_receive(sent, received, peer), received, incoming)

    def broadcast(self, array: Array, root: int = 0) -> None:
        if device_of(array) == CPU:
            self._base.broadcast(array, root)
            return
        check_array("array", array, self.device)
        staged = to_host(array)
        self._base.broadcast(staged, root)
        copy(staged, array)

    def allocate(self, count: int, dtype: npt.DTypeLike) -> Array:
        return self._allocate(count, dtype, self._base.allocate)

    def allocate_for_node(self, count: int, dtype: npt.DTypeLike, is_copy: bool = False) -> Array:
        """Return zeros [count] of this rank only; the counterpart on the host may be one for all ranks of the node."""
        return self._allocate(count, dtype, partial(self._base.allocate_for_node, is_copy=is_copy))

    def shares_with_node(self, array: Array) -> bool:
        return False

    def sums_along_tree(self, array: Array) -> bool:
        return self._base.sums_along_tree(array if device_of(array) == CPU else self._host_array(array))

    def _allocate(self, count: int, dtype: npt.DTypeLike, allocate_on_host: Allocate) -> Array:
        array = zeros(count, dtype, self.device)
        self._allocated = [each for each in self._allocated if each.array() is not None]
        self._allocated.append(_Allocated(weakref.ref(array), allocate_on_host))
        return array

    def _host_array(self, array: Array) -> Array:
        """Return the host's memory for `array`: a part of an allocated counterpart, or a page-locked buffer."""
        for allocated in self._allocated:
            whole = allocated.array()
            # CuPy gives all empty arrays one address.
            if whole is None or not array.size:
                continue
            start = address(array) - address(whole)
            if start >= 0 and start + array.nbytes <= whole.nbytes:
                if allocated.on_host is None:
                    allocated.on_host = allocated.allocate_on_host(whole.size, whole.dtype)
                first = start // whole.itemsize
                return allocated.on_host[first : first + array.size].reshape(array.shape)
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
            synchronise()  # from here on, CuPy may reuse the memory of the buffer
            self._work = None


def _buffer(array: Array) -> Array:
    """Return page-locked memory of the host for `array`."""
    return page_locked(array.nbytes).view(array.dtype).reshape(array.shape)
