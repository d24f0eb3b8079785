"""The communicator over MPI (mpi4py), between processes of one node or of many.

Its constructor imports mpi4py, which initialises MPI; `close` finalises MPI, or else the exit does. Messages travel on
a duplicate of COMM_WORLD, so that they cannot mix with those of a program that uses MPI itself.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from lucid.backend import Array
from lucid.distributed.communicators import between_nodes
from lucid.distributed.communicators.announcement import check_world_size
from lucid.distributed.communicators.communicator import (
    Communicator,
    FailureListener,
    SideChannel,
    Work,
    check_array,
    check_parts,
    check_rank,
    check_swap,
)
from lucid.distributed.communicators.mpi_side_channel import MPISideChannel
from lucid.distributed.communicators.mpi_start import prepare_start
from lucid.distributed.communicators.node_memory import NodeMemory
from lucid.distributed.communicators.progress import ProgressThread
from lucid.distributed.communicators.status_writer import StatusWriter

_SECONDS_TO_BE_KILLED = 5.0
# At the end, for communication that no rank has waited for. All ranks have begun it.
_SECONDS_TO_COMPLETE = 10.0
# Messages of at most this size arrive whole. A rank that waits for one waits for other ranks, and can leave them the
# processor: it yields for about 2 milliseconds, then sleeps between tests.
_SMALL = 4096
_YIELDS, _SECONDS_TO_SLEEP = 1000, 5e-4
# MPI guarantees this many tags.
_TAGS = 2**15


class MPICommunicator(Communicator):
    """All the processes that the launcher started.

    Raises `LaunchError` if the launcher announced another number of processes than MPI knows of.
    """

    def __init__(self) -> None:
        prepare_start()
        from mpi4py import MPI

        check_world_size(MPI.COMM_WORLD.size)
        self._mpi = MPI
        self.library = name_and_version(MPI.Get_library_version())
        self._ranks: Any = MPI.COMM_WORLD.Dup()
        self.rank: int = self._ranks.rank
        self.size: int = self._ranks.size
        self.status = StatusWriter(self.rank, self.size)
        # MPI reads and writes arrays until a request has completed. mpi4py does not keep them alive until then, and an
        # interrupted caller may never wait.
        self._under_way: dict[_Requests, None] = {}
        self._node: Any = self._ranks_of_this_node()
        self.local_rank: int = self._node.rank
        self._fences: list[Any] = []
        self.node_count: int = self._ranks.allreduce(int(self.local_rank == 0))
        # The ranks with this rank's `local_rank`, one on each node.
        self._counterparts: Any = self._ranks.Split(self.local_rank, self.rank)
        self.counterparts: list[int] = self._counterparts.allgather(self.rank)
        self._tag = 0
        is_average = self._node.size * self.node_count == self.size
        self.evenly_spread: bool = self._all_agree(is_average)  # each node has equally many ranks
        # Each node has 1, 2, 4, ... consecutive ranks. To add within nodes first is then the exact reduction's order.
        in_place = self.rank == self._counterparts.rank * self._node.size + self.local_rank
        subtree = in_place and self._node.size & (self._node.size - 1) == 0
        self.nodes_are_subtrees: bool = self.evenly_spread and self._all_agree(subtree)
        self._progress_threads: list[ProgressThread] = []
        self._listeners: list[FailureListener] = []

    def all_reduce(self, array: Array) -> Work:
        check_array("array", array)
        return self._work("all_reduce", (array,), self._ranks.Iallreduce(self._mpi.IN_PLACE, array))

    def reduce_scatter(self, array: Array, bounds: Sequence[int]) -> Work:
        check_parts(array, bounds, self.size)
        own = array.reshape(-1)[bounds[self.rank] : bounds[self.rank + 1]]
        # In place, MPICH 5.0 crashes if a rank's part is longer than all parts before it.
        part = np.empty_like(own)
        request = self._ranks.Ireduce_scatter(array, part, np.diff(bounds).tolist())
        return self._work("reduce_scatter", (array, part), request, then=partial(np.copyto, own, part))

    def all_gather(self, array: Array, bounds: Sequence[int]) -> Work:
        check_parts(array, bounds, self.size)
        parts = (np.diff(bounds).tolist(), list(bounds[:-1]))
        return self._work("all_gather", (array,), self._ranks.Iallgatherv(self._mpi.IN_PLACE, [array, parts]))

    def send_receive(self, outgoing: Array, incoming: Array, peer: int) -> Work:
        check_swap(outgoing, incoming)
        check_rank("peer", peer, self.size)
        receipt = self._ranks.Irecv(incoming, peer)
        return self._work("send_receive", (outgoing, incoming), receipt, self._ranks.Isend(outgoing, peer))

    def broadcast(self, array: Array, root: int = 0) -> None:
        check_array("array", array)
        check_rank("root", root, self.size)
        self._work("broadcast", (array,), self._ranks.Ibcast(array, root)).wait()

    def barrier(self) -> None:
        with self.status.waiting("barrier", 0):
            _wait_for(self._ranks.Ibarrier(), 0)

    def all_reduce_scalar(self, value: float) -> float:
        total = np.array(value, dtype=np.float64)
        self._work("all_reduce_scalar", (total,), self._ranks.Iallreduce(self._mpi.IN_PLACE, total)).wait()
        return float(total)

    def allocate(self, count: int, dtype: npt.DTypeLike) -> Array:
        return np.zeros(count, dtype)

    def allocate_for_node(self, count: int, dtype: npt.DTypeLike, is_copy: bool = False) -> Array:
        return np.zeros(count, dtype)

    def side_channel(self) -> SideChannel:
        self.check_open()
        return MPISideChannel(self._mpi, self._ranks)

    def shares_with_node(self, array: Array) -> bool:
        return False

    def sums_along_tree(self, array: Array) -> bool:
        return False

    def allocate_shared(self, size: int) -> NodeMemory:
        """Return memory that the ranks of this node share, `size` bytes each. All of them call this."""
        with self.status.waiting("allocate", size):
            return NodeMemory(self._node, size)

    def memory_fence(self) -> Callable[[], None]:
        """Return a function that keeps the processor from moving memory accesses across its call, until `close`.

        All ranks of this node call this.
        """
        # Python has no such function, but MPI has one for the windows that it allocates.
        window = self._mpi.Win.Allocate_shared(1, 1, comm=self._node)
        window.Lock_all(self._mpi.MODE_NOCHECK)  # MPI wants `Sync` to be within an epoch
        self._fences.append(window)
        return window.Sync

    def all_reduce_over_nodes(self, array: Array, wire_dtype: np.dtype[Any]) -> Iterator[None]:
        """Replace `array` by its sum over `counterparts`, step by step, as `between_nodes.all_reduce` does.

        The counterparts call this and the two methods below in the same order.
        """
        return between_nodes.all_reduce(self._mpi, self._counterparts, array, self._next_tag(), wire_dtype)

    def reduce_scatter_over_nodes(self, parts: Sequence[Array], wire_dtype: np.dtype[Any]) -> Iterator[None]:
        """Replace this rank's part by its sum over `counterparts`. `parts` has a part for each of them."""
        return between_nodes.reduce_scatter(self._mpi, self._counterparts, parts, self._next_tag(), wire_dtype)

    def all_gather_over_nodes(self, parts: Sequence[Array]) -> Iterator[None]:
        """Replace the parts of the other `counterparts` by theirs. `parts` has a part for each of them."""
        return between_nodes.all_gather(self._mpi, self._counterparts, parts, self._next_tag(), parts[0].dtype)

    def progress_thread(self, advance: Callable[[], bool]) -> ProgressThread | None:
        """Return a thread that communicates until `close`, or None if MPI does not allow a second thread to do so."""
        if self._mpi.Query_thread() < self._mpi.THREAD_MULTIPLE:
            return None
        self._progress_threads.append(ProgressThread(advance))
        return self._progress_threads[-1]

    def broadcast_across_nodes(self, array: Array, root: int) -> None:
        """Replace `array` by rank `root`'s, which is one of `counterparts`. Blocks."""
        self._counterparts.Bcast(array, self.counterparts.index(root))

    def progress(self) -> None:
        """Let MPI move messages that are under way, which it does only during its calls. Does not block."""
        self._ranks.Iprobe()

    def attach(self, listener: FailureListener) -> None:
        """Report the failures of `listener` as this communicator's, and tell it when this communicator ends."""
        self._listeners.append(listener)

    def failure(self) -> str:
        return next(filter(None, (listener.failure() for listener in self._listeners)), "")

    def abort(self, code: int) -> NoReturn:
        for listener in self._listeners:
            listener.on_abort()
        self._mpi.COMM_WORLD.Abort(code)
        # MPICH notifies the launcher and returns; the launcher then kills this process.
        time.sleep(_SECONDS_TO_BE_KILLED)
        os._exit(code)

    def close(self) -> None:
        if isinstance(self._ranks, _Closed):
            return
        self.barrier()
        self.status.report_end()
        # An error that all ranks have may leave communication under way. MPI must not end before it, nor its arrays.
        deadline = time.monotonic() + _SECONDS_TO_COMPLETE
        for thread in self._progress_threads:
            thread.stop(deadline)
        while not all(work.has_ended() for work in list(self._under_way)) and time.monotonic() < deadline:
            os.sched_yield()
        for window in self._fences:
            window.Unlock_all()
            window.Free()
        for listener in self._listeners:
            listener.on_close()
        for ranks in (self._counterparts, self._node, self._ranks):
            ranks.Free()
        self._counterparts = self._node = self._ranks = _Closed()
        # Not at exit: there `python -m mpi4py` turns any exit code but 0 into an abort, which prints a message.
        self._mpi.Finalize()

    def check_open(self) -> None:
        """Raise `RuntimeError` if this communicator has closed."""
        if isinstance(self._ranks, _Closed):
            raise RuntimeError(_Closed.MESSAGE)

    def _next_tag(self) -> int:
        self._tag = (self._tag + 1) % _TAGS
        return self._tag

    def _all_agree(self, here: bool) -> bool:
        return self._ranks.allreduce(int(here)) == self.size

    def _ranks_of_this_node(self) -> Any:
        return self._ranks.Split_type(self._mpi.COMM_TYPE_SHARED)

    def _work(
        self, collective: str, arrays: tuple[Array, ...], *requests: Any, then: Callable[[], None] | None = None
    ) -> "_Requests":
        work = _Requests(self._under_way, self.status, collective, arrays, requests, then)
        self._under_way[work] = None
        return work


class _Closed:
    """Stands for the ranks of a communicator that has closed. MPI would end the process at any call."""

    MESSAGE = "this communicator has closed: the other ranks cannot be reached any more"

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(self.MESSAGE)


def name_and_version(report: str) -> str:
    """Return the name and the version of an MPI library, taken from its own description.

    They are in the first line, where Open MPI appends how it was built, and MPICH pads with white space.
    """
    return " ".join(report.strip("\0\n").partition("\n")[0].partition(",")[0].split())


def _wait_for(request: Any, size: int) -> None:
    """Wait for an MPI request that moves `size` bytes. MPI itself never sleeps, however long other ranks take."""
    if size > _SMALL:
        request.Wait()
        return
    attempts = 0
    while not request.Test():
        if attempts < _YIELDS:
            os.sched_yield()
        else:
            time.sleep(_SECONDS_TO_SLEEP)
        attempts += 1


class _Requests:
    """MPI requests as a `Work`, which calls `then` after them."""

    def __init__(
        self,
        under_way: dict["_Requests", None],
        status: StatusWriter,
        collective: str,
        arrays: tuple[Array, ...],
        requests: tuple[Any, ...],
        then: Callable[[], None] | None,
    ) -> None:
        self._under_way, self._status, self._collective = under_way, status, collective
        self._arrays, self._requests, self._then = arrays, requests, then

    def wait(self) -> None:
        if not self._requests:
            return
        with self._status.waiting(self._collective, self._arrays[0].nbytes):
            for request in self._requests:
                _wait_for(request, sum(array.nbytes for array in self._arrays))
        self._end()

    def has_ended(self) -> bool:
        """Return whether the arrays hold the result. Does not block."""
        if self._requests and all(request.Test() for request in self._requests):
            self._end()
        return not self._requests

    def _end(self) -> None:
        if self._then is not None:
            self._then()
        self._arrays, self._requests, self._then = (), (), None
        del self._under_way[self]
