"""Memory that the ranks of a node share, from MPI."""

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

from lucid.backend import Array


class MPIWindow:
    """As many zero bytes for each rank of a node, which all of them can read and write.

    `parts` are the bytes [size] of every rank, in order of rank; this one's begin at `address`. They lie one after the
    other: `whole` are all of them. They are gone after `free`: whoever touches them then crashes.
    """

    def __init__(self, mpi: Any, node: Any, size: int) -> None:
        """All ranks of the communicator `node` call this. `mpi` is the module `mpi4py.MPI`."""
        self.size = pages(size)
        self._window = mpi.Win.Allocate_shared(self.size, 1, comm=node)
        self.parts: list[Array] = [np.frombuffer(self._window.Shared_query(r)[0], np.uint8) for r in range(node.size)]
        first = self.parts[0].ctypes.data
        self.whole: Array = np.frombuffer(mpi.buffer.fromaddress(first, self.size * node.size), np.uint8)
        own = self.parts[node.rank]
        self.address: int = own.ctypes.data
        # Pages are taken when they are first written: now, while there are enough, and near this rank's core.
        own[:] = 0
        self._window.Lock_all(mpi.MODE_NOCHECK)  # MPI wants `fence` to be within an epoch
        node.Barrier()

    def fence(self) -> None:
        """Let no access to memory move from before this call to after it, or the other way."""
        self._window.Sync()

    def free(self) -> None:
        """Give the memory back. All ranks call this."""
        self._window.Unlock_all()
        self._window.Free()

    def free_space(self) -> tuple[str, int] | None:
        """Return the folder that the MPI library takes such memory from, and the bytes that are free there.

        None if it does not take it from a file system, so that nothing but the machine's memory limits it.
        """
        for line in Path("/proc/self/maps").read_text().splitlines():
            addresses, *_, name = line.split(maxsplit=5)
            start, stop = (int(address, 16) for address in addresses.split("-"))
            folder = Path(name).parent
            if start <= self.address < stop and name.startswith("/") and folder != Path("/"):
                status = os.statvfs(folder)
                return str(folder), status.f_bavail * status.f_frsize
        return None


def pages(size: int) -> int:
    """Return `size` bytes, rounded up to whole pages of memory, one at least."""
    return max(1, -(-size // mmap.PAGESIZE)) * mmap.PAGESIZE
