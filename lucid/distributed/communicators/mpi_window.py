"""Memory from MPI that the ranks of a node share."""

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

from lucid.backend import Array


class MPIWindow:
    """Equally many bytes for each rank of a node, zeros at first, which all of them can read and write.

    `parts` has the bytes [size] of every rank, in order of rank; this rank's begin at `address`. The parts are
    adjacent: `whole` is all of them. After `free` any access to them crashes the process.
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
        # The system assigns a page at the first write: here it does so while there are enough, and near this core.
        own[:] = 0
        self._window.Lock_all(mpi.MODE_NOCHECK)  # MPI wants `fence` to be within an epoch
        node.Barrier()

    def fence(self) -> None:
        """Keep the processor from moving memory accesses across this call."""
        self._window.Sync()

    def free(self) -> None:
        """Release the memory. All ranks call this."""
        self._window.Unlock_all()
        self._window.Free()

    def free_space(self) -> tuple[str, int] | None:
        """Return the folder in which the MPI library allocates such memory, and the free bytes there.

        None if the library does not use a file system for it: then only the machine's memory is the limit.
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
    """Return `size` in bytes, rounded up to whole pages of memory, at least one."""
    return max(1, -(-size // mmap.PAGESIZE)) * mmap.PAGESIZE
