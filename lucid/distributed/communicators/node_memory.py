"""Memory that the ranks of a node share: a file in memory, which each of them maps, and which has no name afterwards.

The system releases it with the last array that views it, or with the last process. So arrays remain valid when
communication has ended; MPI's own shared memory would be gone.
"""

import mmap
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from lucid.backend import Array
from lucid.distributed.communicators.mpi_start import SHARED_MEMORY
from lucid.files import reason_of


class NodeMemory:
    """Equally many bytes for each rank of a node, zeros at first, which all of them can read and write.

    `parts` has the bytes [size] of every rank, in order of rank. The parts are adjacent: `whole` is all of them.
    """

    def __init__(self, node: Any, size: int) -> None:
        """All ranks of the mpi4py communicator `node` call this. Raises `OSError` if there is too little memory."""
        self.size = pages(size)
        file = _open_together(node)
        try:
            # The pages come from the memory near this core. Without this, the first access to a page that the system
            # does not have would be a bus error.
            _allocate(file, node.rank * self.size, self.size)
            node.Barrier()  # the file now has the parts of all ranks
            self.whole: Array = np.frombuffer(mmap.mmap(file, node.size * self.size), np.uint8)
        finally:
            os.close(file)
        self.parts: list[Array] = np.split(self.whole, node.size)


class ViewedMemory:
    """What a rank knows of a `NodeMemory` as long as arrays view it. It keeps no memory itself."""

    def __init__(self, memory: NodeMemory, rank: int) -> None:
        """Take memory of which part number `rank` is this rank's."""
        self._whole = weakref.ref(memory.whole)
        self._address, self._size = memory.parts[rank].ctypes.data, memory.size

    @property
    def is_in_use(self) -> bool:
        """Whether an array views the memory."""
        return self._whole() is not None

    def holds(self, array: Array) -> bool:
        """Return whether an array lies in the memory, in any part."""
        whole = self._whole()
        return whole is not None and np.may_share_memory(array, whole)

    def counterparts(self, array: Array) -> list[Array] | None:
        """Return what corresponds to `array` in each rank's part, flat; None if it does not lie in this rank's."""
        whole, start, count = self._whole(), array.ctypes.data - self._address, array.nbytes
        if whole is None or start < 0 or start + count > self._size:
            return None
        starts = range(start, start + len(whole), self._size)
        return [whole[each : each + count].view(array.dtype) for each in starts]


def _allocate(file: int, start: int, size: int) -> None:
    try:
        os.posix_fallocate(file, start, size)
    except OSError as error:
        raise OSError(error.errno, reason_of(error), str(shared_folder())) from error


def _open_together(node: Any) -> int:
    """Return the descriptor of an empty file that no other process can open. All ranks of `node` call this."""
    file, path = tempfile.mkstemp(prefix="lucid-", dir=shared_folder()) if node.rank == 0 else (-1, "")
    path = node.bcast(path)
    if node.rank > 0:
        file = os.open(path, os.O_RDWR)
    node.Barrier()
    if node.rank == 0:
        os.unlink(path)
    return file


def shared_folder() -> Path:
    """Return the folder of files in memory. If the system has none, return the folder of temporary files."""
    return SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def pages(size: int) -> int:
    """Return `size` in bytes, rounded up to whole pages of memory, at least one."""
    return max(1, -(-size // mmap.PAGESIZE)) * mmap.PAGESIZE
