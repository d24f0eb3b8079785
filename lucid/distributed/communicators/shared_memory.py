"""The communicator that reduces within a node without messages: each process reads the memory of the others.

`allocate` returns memory that all ranks of the node can read and write (`node_memory.py`). An array there is reduced
in place: each rank adds its slice of the arrays of all ranks, and writes the sum to all. This reads and writes every
byte once, while MPI would also copy messages. `lockstep.py` explains in which order this happens, and why it is safe.

Between nodes, the ranks with the same slice, one on each node, sum it by messages (`between_nodes.py`) before each
writes it to all ranks of its node. So a node sends its sum, not the arrays of its ranks. A thread keeps this going
while the caller computes. MPI sends arrays in other memory, and messages between two ranks.

All ranks add the arrays in one order, neighbours first: ((r0 + r1) + (r2 + r3)) + ..., first within a node and then
over nodes. So all ranks get the same bits. If each node has consecutive ranks, these are the bits of the exact
reduction.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from lucid.backend import Array
from lucid.distributed.communicators import sums
from lucid.distributed.communicators.agreement import all_or_none
from lucid.distributed.communicators.between_nodes import WireDtype
from lucid.distributed.communicators.communicator import Work, check_array, check_parts
from lucid.distributed.communicators.layered import LayeredCommunicator
from lucid.distributed.communicators.lockstep import NUMBERS, Lockstep
from lucid.distributed.communicators.mpi import MPICommunicator
from lucid.distributed.communicators.mpi_start import size_and_free
from lucid.distributed.communicators.node_memory import NodeMemory, ViewedMemory, pages, shared_folder
from lucid.distributed.communicators.status_writer import StatusWriter
from lucid.errors import ConfigError

# At first a rank yields, for about 2 milliseconds: to sleep would take longer than to add 4 MB. Then it sleeps, so that
# a rank that needs this core gets it.
_YIELDS = 1000
_SECONDS_TO_SLEEP = 1e-4


class SharedMemoryCommunicator(LayeredCommunicator):
    """The ranks of `base`, evenly spread over nodes. It closes with `base`."""

    _base: MPICommunicator

    def __init__(self, base: MPICommunicator, required: bool, wire_dtype: WireDtype = "float32") -> None:
        """Prepare shared memory; all ranks call this. If it is not `required`, `allocate` may use ordinary memory.

        When float32 arrays from `allocate` are summed, they travel between nodes as `wire_dtype`.
        """
        super().__init__(base)
        self._required, self._wire_dtype = required, np.dtype(wire_dtype)
        # Memory with an array for each rank, and memory with one array for all ranks of the node.
        self._memories: list[ViewedMemory] = []
        self._common_memories: list[ViewedMemory] = []
        self._lacks_space = False
        signals = base.allocate_shared(NUMBERS * np.dtype(np.int64).itemsize).parts
        self._node_size = len(signals)
        numbers = [part.view(np.int64)[:NUMBERS] for part in signals]
        self._lockstep = Lockstep(self.local_rank, numbers, base.memory_fence(), self._idle)
        self._progress = base.progress_thread(self._advance) if self.node_count > 1 else None
        if self.node_count > 1 and self._progress is None:
            self._print(
                "lucid: gradients travel between nodes after backward, not during it: the MPI library does not let two "
                "threads communicate (MPI_THREAD_MULTIPLE)\n"
            )

    def all_reduce(self, array: Array) -> Work:
        check_array("array", array)
        arrays = self._shared_arrays(array)
        if arrays is None:
            return self._base.all_reduce(array)
        start, stop = (array.size * rank // len(arrays) for rank in (self.local_rank, self.local_rank + 1))
        slices = [other[start:stop] for other in arrays]
        one_node = self.node_count == 1
        task = partial(_at_once, sums.all_reduce, slices) if one_node else partial(self._all_reduce_nodes, slices)
        return self._issue("all_reduce", array, task)

    def reduce_scatter(self, array: Array, bounds: Sequence[int]) -> Work:
        check_parts(array, bounds, self.size)
        arrays = self._shared_arrays(array)
        if arrays is None:
            return self._base.reduce_scatter(array, bounds)
        return self._issue("reduce_scatter", array, partial(self._reduce_parts, arrays, bounds))

    def all_gather(self, array: Array, bounds: Sequence[int]) -> Work:
        check_parts(array, bounds, self.size)
        if not self.shares_with_node(array):
            return self._base.all_gather(array, bounds)
        # Within the node nothing moves: once all ranks are ready, each has written its part.
        return self._issue("all_gather", array, partial(self._gather_nodes, array.reshape(-1), bounds))

    def broadcast(self, array: Array, root: int = 0) -> None:
        if not self.shares_with_node(array):
            self._base.broadcast(array, root)
            return
        with self.status.waiting("broadcast", array.nbytes):
            if root in self._base.counterparts:
                self._base.broadcast_across_nodes(array, root)
        self.barrier()

    def allocate(self, count: int, dtype: npt.DTypeLike) -> Array:
        """Return zeros [count] in shared memory; all ranks call this with the same arguments.

        If too little of it is free, this returns ordinary memory, or raises an agreed `ConfigError` if shared memory is
        required.
        """
        size = count * np.dtype(dtype).itemsize
        memory = self._allocate_shared(size)
        if memory is None:
            return self._base.allocate(count, dtype)
        self._note(memory, self._memories)
        return memory.parts[self.local_rank][:size].view(dtype)

    def allocate_for_node(self, count: int, dtype: npt.DTypeLike, is_copy: bool = False) -> Array:
        """Return zeros [count] that all ranks of the node share. The rest is as in `allocate`.

        If there is too little room for a copy (`is_copy`), each rank has its own, and a sentence says so.
        """
        size = count * np.dtype(dtype).itemsize
        # Each rank provides a part of it, so that the memory is spread over their cores.
        memory = self._allocate_shared(-(-size // self._node_size), f"{np.dtype(dtype)}" if is_copy else "")
        if memory is None:
            return self._base.allocate_for_node(count, dtype)
        self._note(memory, self._common_memories)
        return memory.whole[:size].view(dtype)

    def shares_with_node(self, array: Array) -> bool:
        return any(memory.holds(array) for memory in self._common_memories)

    def sums_along_tree(self, array: Array) -> bool:
        if self._shared_arrays(array) is None:
            return False
        return self.node_count == 1 or (self._base.nodes_are_subtrees and self._travels_as(array.dtype) == array.dtype)

    def _note(self, memory: NodeMemory, memories: list[ViewedMemory]) -> None:
        memories[:] = [each for each in memories if each.is_in_use]
        memories.append(ViewedMemory(memory, self.local_rank))

    def _allocate_shared(self, size: int, copy_in: str = "") -> NodeMemory | None:
        """Return memory of `size` bytes for each rank; None if there is too little, and it is not required.

        A copy of the weights in the dtype `copy_in` never is. After the first None for anything else there are only
        Nones: gradients in ordinary memory do not synchronise the ranks in the way that memory of the node needs.
        """
        if self._lacks_space:
            return None
        advice = "" if copy_in else ", or set distributed.backend to mpi"
        try:
            all_or_none(self._base, partial(self._check_space, pages(size) * self._node_size, advice))
        except ConfigError as lack:
            if copy_in:
                self._print(f"lucid: each rank keeps its own copy of the weights in {copy_in}: {lack}\n")
                return None
            if self._required:
                raise
            self._print(f"lucid: gradients go by plain MPI in float32, more slowly: {lack}\n")
            self._lacks_space = True
            return None
        return self._base.allocate_shared(size)

    def _check_space(self, needed: int, advice: str) -> None:
        """Raise `ConfigError` if less than `needed` bytes are free on this node. The message ends with `advice`."""
        folder = shared_folder()
        _, free = size_and_free(folder)
        if free < needed:
            raise ConfigError(
                f"the {self._node_size} ranks of a node need {needed / 2**20:,.0f} MiB more of shared memory, "
                f"but {folder} has {free / 2**20:,.0f} MiB free: make it larger (docker and podman: "
                f"--shm-size={-(-needed // 2**30) + 1}g){advice}"
            )

    def _print(self, message: str) -> None:
        if self.rank == 0:
            sys.stderr.write(message)

    def _shared_arrays(self, array: Array) -> list[Array] | None:
        """Return the array of each rank of this node that corresponds to `array`, flat; None if it is not shared."""
        found = (memory.counterparts(array) for memory in self._memories)
        return next((arrays for arrays in found if arrays is not None), None)

    def _issue(self, collective: str, array: Array, task: Callable[[], Iterable[None]]) -> "_Issued":
        self._base.check_open()
        number = self._lockstep.issue(task)
        if self._progress is not None:
            self._progress.wake()
        return _Issued(self._lockstep, number, self.status, collective, array.nbytes)

    def _all_reduce_nodes(self, slices: list[Array]) -> Iterator[None]:
        """Replace each of this node's `slices` by the sum over all nodes, step by step."""
        sums.reduce_in_place(slices)
        yield from self._base.all_reduce_over_nodes(slices[0], self._travels_as(slices[0].dtype))
        sums.copy(slices[0], slices[1:])

    def _travels_as(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        return self._wire_dtype if dtype == np.float32 else dtype

    def _advance(self) -> bool:
        self._lockstep.advance()
        return self._lockstep.has_tasks()

    def _reduce_parts(self, arrays: list[Array], bounds: Sequence[int]) -> Iterator[None]:
        """Write this rank's part of the sum over all ranks to its own array; `arrays` are those of this node."""
        own = arrays[self.local_rank]
        # The parts of this node's sum that this rank and its counterparts on the other nodes need.
        needed = self._parts_over_nodes(bounds)
        for part in needed:
            sums.reduce([array[part] for array in arrays], own[part])
        if self.node_count > 1:
            parts = [own[part] for part in needed]
            yield from self._base.reduce_scatter_over_nodes(parts, self._travels_as(own.dtype))

    def _gather_nodes(self, array: Array, bounds: Sequence[int]) -> Iterator[None]:
        """Receive the parts of `array` that belong to this rank's counterparts."""
        if self.node_count > 1:
            yield from self._base.all_gather_over_nodes([array[part] for part in self._parts_over_nodes(bounds)])

    def _parts_over_nodes(self, bounds: Sequence[int]) -> list[slice]:
        return [slice(bounds[rank], bounds[rank + 1]) for rank in self._base.counterparts]

    def _idle(self, attempts: int) -> None:
        if attempts < _YIELDS:
            os.sched_yield()
            return
        # The rank that this one waits for may wait for a message that only moves while this rank is in MPI.
        self._base.progress()
        time.sleep(_SECONDS_TO_SLEEP)


class _Issued:
    """An operation of a `Lockstep` as a `Work`."""

    def __init__(self, lockstep: Lockstep, number: int, status: StatusWriter, collective: str, size: int) -> None:
        self._lockstep, self._number = lockstep, number
        self._status, self._collective, self._size = status, collective, size
        self._over = False

    def wait(self) -> None:
        if self._over:
            return
        with self._status.waiting(self._collective, self._size):
            self._lockstep.complete(self._number)
        self._over = True


def _at_once(action: Callable[..., None], *arguments: Array | list[Array]) -> Iterable[None]:
    """Do a task that waits for no messages: it has no steps."""
    action(*arguments)
    return ()
