"""The interface of communication: the `Communicator` protocol, its `Work`, and the checks of arguments.

The other files of this package implement it. All ranks call the same collectives in the same order, and wait for them
in the same order, with arrays of equal size and dtype: only the content of the arrays differs. All reductions are sums.
Nothing takes means, because losses are normalised by global counts before backward.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from lucid.backend import CPU, Array, array_module, device_of
from lucid.distributed.communicators.status_writer import StatusWriter

# Every MPI and NCCL can add and send these.
DTYPES = frozenset(np.dtype(name) for name in ("float32", "float64", "int32", "int64", "uint8", "uint32", "uint64"))

# The most bytes of a message through a side channel.
LONGEST_MESSAGE = 16_384


class Work(Protocol):
    """A communication under way. Its arrays belong to the communicator until `wait` has returned."""

    def wait(self) -> None:
        """Block until the arrays hold the result. Waiting again returns at once.

        For arrays on a GPU the host does not block: the current stream waits before its next work.
        """


class SideChannel(Protocol):
    """Short messages between any two ranks at any time, independent of the collectives. No method but `close` blocks.

    One thread may use it, even while another thread waits in a collective. A message to a rank that does not receive
    it is lost.
    """

    def send(self, message: bytes, peer: int) -> None:
        """Send `message`, of at most `LONGEST_MESSAGE` bytes, to rank `peer`."""

    def receive(self) -> tuple[int, bytes] | None:
        """Return the sender and the content of the next message that has arrived, or None."""

    def close(self) -> None:
        """Release the channel when all messages have been delivered or dropped. All ranks call this, and wait."""


class FailureListener(Protocol):
    """A second connection of the same ranks, such as NCCL's. If either fails or ends, so does the other."""

    def failure(self) -> str:
        """Return a sentence about a failure so far, or "". Any thread may call this; it does not block."""

    def on_abort(self) -> None:
        """Give up all communication, because the job ends. Any thread may call this; it takes at most seconds."""

    def on_close(self) -> None:
        """Release everything, after all ranks have finished in order. This takes at most seconds."""


class Communicator(Protocol):
    """A group of `size` processes, of which this one is `rank`.

    Arrays are in the host's memory or on `device`, C-contiguous, of one of `DTYPES`, of any shape, and of equal size on
    all ranks; any other array is a `ValueError` that names the argument. Methods that return a `Work` do not block.
    """

    rank: int
    size: int
    local_rank: int  # this process's number among those of its node
    node_count: int
    status: StatusWriter  # every method that blocks records its wait here
    device: str = CPU  # where the flat buffers are: "cpu" or "cuda:N"
    remark: str = ""  # a sentence for the user, if gradients travel in a way that they might not expect

    @property
    def seconds_waited(self) -> float:
        """The time that this rank has waited in collectives so far, of the thread that trains.

        It includes waiting for ranks that come later, transfers that no computation overlaps, and sums that are made
        in the wait. The time of a step without it is what the rank itself computes, reads and writes.
        """
        return self.status.seconds_waited

    def all_reduce(self, array: Array) -> Work:
        """Replace `array` by its sum over ranks, in place. All ranks get the same bits."""

    def reduce_scatter(self, array: Array, bounds: Sequence[int]) -> Work:
        """Replace part `rank` of `array` by the same part of the sum over ranks, in place.

        Part r is elements [bounds[r], bounds[r + 1]); `bounds` rise from 0 to `array.size`. The content of the other
        parts is undefined afterwards.
        """

    def all_gather(self, array: Array, bounds: Sequence[int]) -> Work:
        """Replace part r of `array` by rank r's, for every r, in place; `bounds` as in `reduce_scatter`."""

    def send_receive(self, outgoing: Array, incoming: Array, peer: int) -> Work:
        """Exchange arrays with rank `peer`, which calls this too: its `outgoing` arrives in `incoming`.

        `outgoing` and `incoming` may differ in size; the peer's sizes are then the reverse.
        """

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Replace `array` by rank `root`'s, in place. Blocks."""

    def barrier(self) -> None:
        """Block until all ranks are here."""

    def all_reduce_scalar(self, value: float) -> float:
        """Return the sum of `value` over ranks, added in float64: the same bits on all ranks. Blocks."""

    def allocate(self, count: int, dtype: npt.DTypeLike) -> Array:
        """Return zeros [count] on `device`, in the memory that is fastest to communicate, for a flat buffer.

        All ranks call this together, and communicate the same parts of it. It remains valid after `close`.
        """

    def allocate_for_node(self, count: int, dtype: npt.DTypeLike, is_copy: bool = False) -> Array:
        """Return zeros [count] on `device` for a flat parameter buffer, if possible one for all ranks of a node.

        All ranks call this together. Each writes only its own part, and calls `all_gather` before any rank reads;
        `broadcast` accepts the array too. It remains valid after `close`. If it is only a copy of the parameters in
        `dtype` (`is_copy`), too little memory for it changes nothing about other buffers.
        """

    def shares_with_node(self, array: Array) -> bool:
        """Return whether `array` is one memory for all ranks of this node: `allocate_for_node` made it so."""

    def sums_along_tree(self, array: Array) -> bool:
        """Return whether `all_reduce` adds the terms of `array` in the exact reduction's order.

        It adds pairs of neighbouring ranks first, then pairs of these sums, and so on. All ranks get the same answer.
        """

    def side_channel(self) -> SideChannel | None:
        """Return a new channel for short messages, or None if there is no other rank. All ranks call this.

        Raises `LaunchError` if the MPI library does not allow a second thread to communicate.
        """

    def failure(self) -> str:
        """Return a sentence about a failed communication that no thread of the host waits for, or "".

        Any thread may call this; it does not block.
        """
        return ""

    def abort(self, code: int) -> NoReturn:
        """End all ranks at once with exit code `code`. Any thread may call this."""

    def close(self) -> None:
        """Wait for the other ranks, and for communication that no one has waited for; then end it in order.

        Blocks. All later communication is a `RuntimeError`, unless this process is alone. To close again does nothing.
        """


class Finished:
    """The `Work` of a communication that is already over."""

    def wait(self) -> None:
        """Return at once."""


def check_array(name: str, array: Array, device: str = CPU) -> None:
    """Raise `ValueError` unless `array` can be communicated from the host's memory or from `device`.

    `name` is the caller's name for it.
    """
    xp = array_module(array)
    if not isinstance(array, xp.ndarray):
        raise ValueError(f"{name} must be a NumPy or CuPy array, got {type(array).__name__}")
    if device_of(array) not in (CPU, device):
        raise ValueError(f"{name} is on {device_of(array)}, but this communicator is for {device}: see `connect`")
    if array.dtype not in DTYPES:
        known = ", ".join(sorted(dtype.name for dtype in DTYPES))
        raise ValueError(f"{name} has dtype {array.dtype}, which cannot be communicated: use one of {known}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous, got shape {array.shape} with strides {array.strides}")


def check_parts(array: Array, bounds: Sequence[int], size: int, device: str = CPU) -> None:
    """Raise `ValueError` unless `array` can be communicated, and `bounds` cut it into `size` parts."""
    check_array("array", array, device)
    if len(bounds) != size + 1 or bounds[0] != 0 or bounds[-1] != array.size or any(a > b for a, b in pairwise(bounds)):
        raise ValueError(f"bounds are {list(bounds)}, but must cut {array.size} elements into {size} parts")


def check_swap(outgoing: Array, incoming: Array, device: str = CPU) -> None:
    """Raise `ValueError` unless one array can be sent while the other is received."""
    check_array("outgoing", outgoing, device)
    check_array("incoming", incoming, device)
    if outgoing.dtype != incoming.dtype:
        raise ValueError(f"outgoing has dtype {outgoing.dtype}, but incoming has {incoming.dtype}")
    if device_of(outgoing) != device_of(incoming):
        raise ValueError(f"outgoing is on {device_of(outgoing)}, but incoming is on {device_of(incoming)}")
    if array_module(outgoing).may_share_memory(outgoing, incoming):
        raise ValueError("outgoing and incoming overlap in memory")


def check_rank(name: str, rank: int, size: int) -> None:
    """Raise `ValueError` unless `rank` is one of `size` ranks."""
    if not 0 <= rank < size:
        raise ValueError(f"{name} is rank {rank}, but there are ranks 0 to {size - 1}")
