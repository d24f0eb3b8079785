"""The communicator over MPI (mpi4py), between processes of one node or of many.

Making one imports mpi4py, which initialises MPI; `close` finalises it, or else the exit does. Messages travel on a
duplicate of COMM_WORLD, so that they cannot mix with those of a program that uses MPI on its own.
"""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from lucid.backend import Array
from lucid.distributed.backends import between_nodes
from lucid.distributed.backends.mpi_side_channel import MPISideChannel
from lucid.distributed.backends.mpi_window import MPIWindow
from lucid.distributed.backends.progress import ProgressThread
from lucid.distributed.communicator import (
    Communicator,
    SideChannel,
    Work,
    check_apart,
    check_array,
    check_parts,
    check_rank,
    check_same_dtype,
)
from lucid.distributed.topology import check_world_size
from lucid.distributed.whereabouts import Whereabouts

_SECONDS_TO_BE_KILLED = 5.0
# MPI promises that there are as many.
_TAGS = 2**15


class MPICommunicator(Communicator):
    """All the processes that the launcher started.

    Raises `LaunchError` if the launcher announced another number of processes than MPI knows of.
    """

    def __init__(self) -> None:
        from mpi4py import MPI

        check_world_size(MPI.COMM_WORLD.size)
        self._mpi = MPI
        self._ranks = MPI.COMM_WORLD.Dup()
        self.rank: int = self._ranks.rank
        self.size: int = self._ranks.size
        self.whereabouts = Whereabouts(self.rank, self.size)
        # MPI reads and writes arrays until a request is done, and mpi4py does not keep them alive. Nor does a caller
        # that was interrupted, and never waits.
        self._under_way: set[_Requests] = set()
        self._node = self._ranks_of_this_node()
        self.local_rank: int = self._node.rank
        self._windows: list[MPIWindow] = []
        self.node_count: int = self._ranks.allreduce(int(self.local_rank == 0))
        # Those that have this one's place on the other nodes.
        self._counterparts = self._ranks.Split(self.local_rank, self.rank)
        self._tag = 0
        fair_share = self._node.size * self.node_count == self.size
        self.evenly_spread: bool = self._ranks.allreduce(int(fair_share)) == self.size  # as many ranks on each node
        # Each node has the next ranks after those of the node before, 1, 2, 4, ... of them: to add within nodes first
        # is the order of the exact reduction's tree.
        in_place = self.rank == self._counterparts.rank * self._node.size + self.local_rank
        subtree = in_place and self._node.size & (self._node.size - 1) == 0
        self.nodes_are_subtrees: bool = self.evenly_spread and self._ranks.allreduce(int(subtree)) == self.size
        self._progress_threads: list[ProgressThread] = []

    def all_reduce(self, array: Array) -> Work:
        check_array("array", array)
        return self._work("all_reduce", (array,), self._ranks.Iallreduce(self._mpi.IN_PLACE, array))

    def reduce_scatter(self, array: Array, shard: Array) -> Work:
        check_parts(shard, array, self.size)
        check_apart("shard", shard, "array", array)
        return self._work("reduce_scatter", (array, shard), self._ranks.Ireduce_scatter_block(array, shard))

    def all_gather(self, shard: Array, array: Array) -> Work:
        check_parts(shard, array, self.size)
        own_part = array.reshape(self.size, -1)[self.rank]
        if shard.size and shard.ctypes.data == own_part.ctypes.data:
            return self._work("all_gather", (array,), self._ranks.Iallgather(self._mpi.IN_PLACE, array))
        check_apart("shard", shard, "array", array)
        return self._work("all_gather", (array, shard), self._ranks.Iallgather(shard, array))

    def send_receive(self, outgoing: Array, incoming: Array, peer: int) -> Work:
        check_array("outgoing", outgoing)
        check_array("incoming", incoming)
        check_same_dtype("outgoing", outgoing, "incoming", incoming)
        check_apart("outgoing", outgoing, "incoming", incoming)
        check_rank("peer", peer, self.size)
        receipt = self._ranks.Irecv(incoming, peer)
        return self._work("send_receive", (outgoing, incoming), receipt, self._ranks.Isend(outgoing, peer))

    def broadcast(self, array: Array, root: int = 0) -> None:
        check_array("array", array)
        check_rank("root", root, self.size)
        with self.whereabouts.waiting("broadcast", array.nbytes):
            self._ranks.Bcast(array, root)

    def barrier(self) -> None:
        with self.whereabouts.waiting("barrier", 0):
            self._ranks.Barrier()

    def all_reduce_scalar(self, value: float) -> float:
        total = np.array(value, dtype=np.float64)
        with self.whereabouts.waiting("all_reduce_scalar", total.nbytes):
            self._ranks.Allreduce(self._mpi.IN_PLACE, total)
        return float(total)

    def allocate(self, count: int, dtype: npt.DTypeLike) -> Array:
        return np.zeros(count, dtype)

    def side_channel(self) -> SideChannel:
        return MPISideChannel(self._mpi, self._ranks)

    def sums_along_tree(self, array: Array) -> bool:
        return False

    def share(self, size: int) -> MPIWindow:
        """Return memory that the ranks of this node share, `size` bytes each, until `close`. All of them call this."""
        with self.whereabouts.waiting("allocate", size):
            window = MPIWindow(self._mpi, self._node, size)
        self._windows.append(window)
        return window

    def all_reduce_over_nodes(self, array: Array, wire_dtype: np.dtype[Any]) -> Iterator[None]:
        """Replace `array` by its sum over the ranks with this `local_rank` of all nodes, as `between_nodes` does.

        These ranks call this in the same order.
        """
        self._tag = (self._tag + 1) % _TAGS
        return between_nodes.all_reduce(self._mpi, self._counterparts, array, self._tag, wire_dtype)

    def progress_thread(self, advance: Callable[[], bool]) -> ProgressThread | None:
        """Return a thread that communicates until `close`; None where MPI does not let a second one do so."""
        if self._mpi.Query_thread() < self._mpi.THREAD_MULTIPLE:
            return None
        self._progress_threads.append(ProgressThread(advance))
        return self._progress_threads[-1]

    def progress(self) -> None:
        """Let MPI move messages that are under way, as it does in its own calls only. Does not block."""
        self._ranks.Iprobe()

    def abort(self, code: int) -> NoReturn:
        self._mpi.COMM_WORLD.Abort(code)
        # MPICH only tells the launcher, and goes on until that kills this process.
        time.sleep(_SECONDS_TO_BE_KILLED)
        os._exit(code)

    def close(self) -> None:
        self.barrier()
        self.whereabouts.end_told()
        for thread in self._progress_threads:
            thread.stop()
        for window in self._windows:
            window.free()
        # Here, not at exit: there `python -m mpi4py` turns any exit code but 0 into an abort, which is loud.
        self._mpi.Finalize()

    def _ranks_of_this_node(self) -> Any:
        return self._ranks.Split_type(self._mpi.COMM_TYPE_SHARED)

    def _work(self, collective: str, arrays: tuple[Array, ...], *requests: Any) -> "_Requests":
        work = _Requests(self._under_way, self.whereabouts, collective, arrays, requests)
        self._under_way.add(work)
        return work


class _Requests:
    """MPI requests as a `Work`."""

    def __init__(
        self,
        under_way: set["_Requests"],
        whereabouts: Whereabouts,
        collective: str,
        arrays: tuple[Array, ...],
        requests: tuple[Any, ...],
    ) -> None:
        self._under_way, self._whereabouts, self._collective = under_way, whereabouts, collective
        self._arrays, self._requests = arrays, requests

    def wait(self) -> None:
        if not self._requests:
            return
        with self._whereabouts.waiting(self._collective, self._arrays[0].nbytes):
            for request in self._requests:
                request.Wait()
        self._arrays, self._requests = (), ()
        self._under_way.discard(self)
