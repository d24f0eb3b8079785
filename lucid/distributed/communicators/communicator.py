"""What the rest of lucid knows of communication: the `Communicator` protocol, its `Work`, and its argument checks.

The other files of this package implement it. All ranks call the same collectives in the same order, and
wait for them in the same order, with arrays of equal size and dtype; what differs between ranks is only what the arrays
hold. Reductions are sums: means are never taken here, because losses are normalised by global counts before backward.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from lucid.backend import CPU, Array, array_module, device_of
from lucid.distributed.communicators.rank_status import Whereabouts

# What every MPI and NCCL can add up and carry.
DTYPES = frozenset(np.dtype(name) for name in ("float32", "float64", "int32", "int64", "uint8", "uint32", "uint64"))

# Bytes that a side channel takes at once.
LONGEST_MESSAGE = 16_384


class Work(Protocol):
    """A communication under way. Its arrays are the communicator's until `wait` has returned."""

    def wait(self) -> None:
        """Block until the arrays hold the result. Waiting again returns at once.

        For arrays on a GPU it is the current stream that waits, and so does what is asked of it from then on.
        """


class SideChannel(Protocol):
    """Short messages between any two ranks, beside the collectives and at any time. Nothing here blocks.

    One thread may use it, also while another one waits in a collective. Messages to a rank that does not receive them
    are lost.
    """

    def send(self, message: bytes, peer: int) -> None:
        """Send `message`, of at most `LONGEST_MESSAGE` bytes, to rank `peer`."""

    def receive(self) -> tuple[int, bytes] | None:
        """Return the next message that has arrived and the rank that sent it, if there is one."""

    def close(self) -> None:
        """Give the channel back. All ranks call this."""


class FailureListener(Protocol):
    """What communicates beside a group, by other hardware, and ends with it."""

    def failure(self) -> str:
        """Return what has gone wrong meanwhile, in a sentence; "" if nothing has. From any thread; does not block."""

    def on_abort(self) -> None:
        """Leave at once what is under way, because the job ends. From any thread; takes seconds at most."""

    def on_close(self) -> None:
        """Give everything back, when all ranks have finished in order. Takes seconds at most."""


class Communicator(Protocol):
    """A group of `size` processes, of which this one is `rank`.

    Arrays are in the host's memory or on `device`, C-contiguous, of one of `DTYPES`, of any shape, and of equal size on
    all ranks; anything else is a `ValueError` that names the argument. Methods that return a `Work` do not block.
    """

    rank: int
    size: int
    local_rank: int  # this process's place among those of its node
    node_count: int
    whereabouts: Whereabouts  # kept by the backend: every method that blocks notes its wait there
    device: str = CPU  # where the flat buffers are: "cpu" or "cuda:N"
    remark: str = ""  # a sentence for the user about how gradients travel, where it is not as they might expect

    def all_reduce(self, array: Array) -> Work:
        """Replace `array` by its sum over ranks, in place. All ranks get the same bits."""

    def reduce_scatter(self, array: Array, bounds: Sequence[int]) -> Work:
        """Replace part `rank` of `array` by that part of the sum over ranks, in place.

        Part r is elements [bounds[r], bounds[r + 1]); `bounds` rise from 0 to `array.size`. The other parts hold
        afterwards what is of no use.
        """

    def all_gather(self, array: Array, bounds: Sequence[int]) -> Work:
        """Replace each part of `array` by that of the rank it belongs to, in place; `bounds` as in `reduce_scatter`."""

    def send_receive(self, outgoing: Array, incoming: Array, peer: int) -> Work:
        """Swap with rank `peer`, which calls this too: its `outgoing` arrives in `incoming`.

        `outgoing` may be of another size than `incoming`; the peer's are the other way about.
        """

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Replace `array` by rank `root`'s, in place. Blocks."""

    def barrier(self) -> None:
        """Block until all ranks are here."""

    def all_reduce_scalar(self, value: float) -> float:
        """Return the sum of `value` over ranks, added in float64: the same bits on all ranks. Blocks."""

    def allocate(self, count: int, dtype: npt.DTypeLike) -> Array:
        """Return zeros [count] on `device` for a flat parameter or gradient buffer, where it is communicated best.

        All ranks call this together, and communicate the same parts of what they get. It ends with the communicator.
        """

    def allocate_for_node(self, count: int, dtype: npt.DTypeLike) -> Array:
        """Return zeros [count] on `device` for a flat parameter buffer, one for all ranks of a node, if it can be had.

        All ranks call this together, and keep an order among themselves: each writes a part of its own, and calls
        `all_gather`, after which all may read. `broadcast` takes it as well. It ends with the communicator.
        """

    def sums_along_tree(self, array: Array) -> bool:
        """Return whether `all_reduce` adds up `array` as the exact reduction does.

        That is first pairs of neighbours, then pairs of their sums, and so on. All ranks get the same answer.
        """

    def side_channel(self) -> SideChannel | None:
        """Return a new channel for short messages; None if there is no other rank. All ranks call this.

        Raises `LaunchError` if the MPI library does not let a second thread communicate.
        """

    def failure(self) -> str:
        """Return what has gone wrong in a communication that nobody waits for, in a sentence; "" if nothing has.

        From any thread; does not block.
        """
        return ""

    def abort(self, code: int) -> NoReturn:
        """End all ranks now, from any thread, with exit code `code`."""

    def close(self) -> None:
        """Meet the other ranks for an orderly end, and leave. Blocks; nothing can be communicated afterwards."""


class Finished:
    """The `Work` of a communication that was over at once."""

    def wait(self) -> None:
        """Return at once."""


def check_array(name: str, array: Array, device: str = CPU) -> None:
    """Raise `ValueError` unless `array` can be communicated from the host's memory or from `device`.

    `name` is what the caller calls it.
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
        raise ValueError(f"bounds are {list(bounds)}, but {size} parts of {array.size} elements are wanted")


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
