"""The communicator of a single process: every sum is the value itself, and nothing waits."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import numpy.typing as npt

from lucid.backend import CPU, Array, device_of, zeros
from lucid.distributed.communicators.communicator import (
    Communicator,
    Finished,
    Work,
    check_array,
    check_parts,
    check_rank,
    check_swap,
)
from lucid.distributed.communicators.status_writer import StatusWriter


class SingleCommunicator(Communicator):
    """A group of one process. It checks arguments as the others do, so that a program that runs here runs there."""

    rank = 0
    size = 1
    local_rank = 0
    node_count = 1
    evenly_spread = True

    def __init__(self, device: str = CPU, status: StatusWriter | None = None) -> None:
        """Allocate on `device`; collectives accept arrays on any. `status` is the process's, if it has one."""
        self.device = device
        self.status = status or StatusWriter(self.rank, self.size)

    def all_reduce(self, array: Array) -> Work:
        check_array("array", array, device_of(array))
        return Finished()

    def reduce_scatter(self, array: Array, bounds: Sequence[int]) -> Work:
        check_parts(array, bounds, self.size, device_of(array))
        return Finished()

    def all_gather(self, array: Array, bounds: Sequence[int]) -> Work:
        check_parts(array, bounds, self.size, device_of(array))
        return Finished()

    def send_receive(self, outgoing: Array, incoming: Array, peer: int) -> Work:
        check_swap(outgoing, incoming, device_of(outgoing))
        check_rank("peer", peer, self.size)
        incoming.reshape(-1)[...] = outgoing.reshape(-1)
        return Finished()

    def broadcast(self, array: Array, root: int = 0) -> None:
        check_array("array", array, device_of(array))
        check_rank("root", root, self.size)

    def barrier(self) -> None:
        return

    def all_reduce_scalar(self, value: float) -> float:
        return float(value)

    def allocate(self, count: int, dtype: npt.DTypeLike) -> Array:
        return zeros(count, dtype, self.device)

    def allocate_for_node(self, count: int, dtype: npt.DTypeLike, is_copy: bool = False) -> Array:
        return zeros(count, dtype, self.device)

    def side_channel(self) -> None:
        return None

    def shares_with_node(self, array: Array) -> bool:
        return False

    def sums_along_tree(self, array: Array) -> bool:
        return True

    def abort(self, code: int) -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # sys.exit would end only the thread that calls it

    def close(self) -> None:
        self.status.report_end()
