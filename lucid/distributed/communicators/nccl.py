"""The communicator between GPUs: NCCL carries arrays on GPUs; MPI carries arrays of the host and all short messages.

Collectives run on a stream of their own, so that gradients travel while backward is running. Events order the two
streams, and the host never waits. A collective begins when the current stream has reached the point of the call.
`Work.wait` makes the current stream wait for the end of the collective. A CUDA graph can capture all of this: it forks
at the first event that is waited for, and joins at the last.

NCCL chooses the order of additions. All ranks get the same bits, and the same number of ranks gets them again in every
run. The exact reduction has its own order, for which it only sends and receives. If `wire_dtype` is bfloat16, rounded
copies of float32 arrays are summed. NCCL has no collective for parts of different sizes. There is one reduction or
broadcast for each part instead; a group of calls starts them together.

The host does not wait here, so it does not notice a broken connection. The watchdog asks for it by `failure`.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lucid.backend import CPU, Array, address, device_of, zeros
from lucid.distributed.communicators.between_nodes import WireDtype
from lucid.distributed.communicators.communicator import (
    FailureListener,
    Finished,
    Work,
    check_array,
    check_parts,
    check_rank,
    check_swap,
)
from lucid.distributed.communicators.layered import LayeredCommunicator
from lucid.distributed.communicators.mpi import MPICommunicator
from lucid.distributed.communicators.stream_waits import StreamWaits
from lucid.errors import LaunchError

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# NCCL's names of `DTYPES`, and of bfloat16, in which arrays may travel.
_NAMES = {
    "float32": "NCCL_FLOAT32",
    "float64": "NCCL_FLOAT64",
    "int32": "NCCL_INT32",
    "int64": "NCCL_INT64",
    "uint8": "NCCL_UINT8",
    "uint32": "NCCL_UINT32",
    "uint64": "NCCL_UINT64",
    "bfloat16": "NCCL_BFLOAT16",
}
_IDENTITY_BYTES = 128
# To abort a connection may hang, and to destroy one whose collectives are in a graph waits for the end of that graph.
_SECONDS_TO_LEAVE = 2.0


class NCCLCommunicator(LayeredCommunicator, FailureListener):
    """The ranks of `base`, each with its own GPU, `device` ("cuda:N"), the current one. It closes with `base`."""

    _base: MPICommunicator

    def __init__(self, base: MPICommunicator, device: str, wire_dtype: WireDtype = "float32") -> None:
        """Connect the GPUs; all ranks call this. float32 arrays are summed as `wire_dtype`.

        Raises `LaunchError` if NCCL does not start.
        """
        import cupy
        from cupy.cuda import nccl

        super().__init__(base)
        self.device = device
        self._cuda, self._nccl, self._wire_dtype = cupy.cuda, nccl, np.dtype(wire_dtype)
        # CuPy raises KeyError instead of NcclError for a status of NCCL that it does not know.
        self._errors = nccl.NcclError, KeyError
        self._stream = cupy.cuda.Stream(non_blocking=True)
        # The point of the current stream at which a collective was called.
        self._called = cupy.cuda.Event(disable_timing=True)
        self._rounded = cupy.empty(0, _BFLOAT16)
        self._waits = StreamWaits(cupy.cuda)
        self._connection, self._has_left = self._connect(), False
        base.attach(self)

    def _connect(self) -> Any:
        identity = np.zeros(_IDENTITY_BYTES, np.uint8)
        if self.rank == 0:
            identity[:] = np.frombuffer(self._nccl.get_unique_id(), np.uint8)
        self._base.broadcast(identity)
        self._base.barrier()
        try:
            with self.status.waiting("start of NCCL", 0):
                return self._nccl.NcclCommunicator(self.size, identity.tobytes(), self.rank)
        except self._errors as error:
            raise LaunchError(
                f"NCCL does not start on {self.device} ({_in_words(error)}): NCCL_DEBUG=INFO in the environment lets "
                "it say why; distributed.backend=mpi does without it"
            ) from error

    @property
    def seconds_waited(self) -> float:
        """The time that this rank's GPU has waited in collectives, as far as it has passed them.

        The host's waits do not count: it is ahead of the GPU, which computes meanwhile.
        """
        return self._waits.seconds

    def all_reduce(self, array: Array) -> Work:
        if device_of(array) == CPU:
            return self._base.all_reduce(array)
        check_array("array", array, self.device)
        return self._start("all_reduce", array, partial(self._sum, array.reshape(-1)))

    def reduce_scatter(self, array: Array, bounds: Sequence[int]) -> Work:
        if device_of(array) == CPU:
            return self._base.reduce_scatter(array, bounds)
        check_parts(array, bounds, self.size, self.device)
        return self._start("reduce_scatter", array, partial(self._sum_parts, array.reshape(-1), bounds))

    def all_gather(self, array: Array, bounds: Sequence[int]) -> Work:
        if device_of(array) == CPU:
            return self._base.all_gather(array, bounds)
        check_parts(array, bounds, self.size, self.device)
        return self._start("all_gather", array, partial(self._gather, array.reshape(-1), bounds))

    def send_receive(self, outgoing: Array, incoming: Array, peer: int) -> Work:
        if device_of(outgoing) == CPU:
            return self._base.send_receive(outgoing, incoming, peer)
        check_swap(outgoing, incoming, self.device)
        check_rank("peer", peer, self.size)
        larger = max(outgoing, incoming, key=lambda array: array.size)
        return self._start("send_receive", larger, partial(self._swap, outgoing, incoming, peer))

    def broadcast(self, array: Array, root: int = 0) -> None:
        if device_of(array) == CPU:
            self._base.broadcast(array, root)
            return
        check_array("array", array, self.device)
        check_rank("root", root, self.size)
        self._start("broadcast", array, partial(self._spread, array, root)).wait()

    def allocate(self, count: int, dtype: npt.DTypeLike) -> Array:
        return zeros(count, dtype, self.device)

    def allocate_for_node(self, count: int, dtype: npt.DTypeLike, is_copy: bool = False) -> Array:
        """Return zeros [count] of this rank only: GPUs do not share memory."""
        return self.allocate(count, dtype)

    def shares_with_node(self, array: Array) -> bool:
        return False

    def sums_along_tree(self, array: Array) -> bool:
        return self.size == 1

    def failure(self) -> str:
        if self._has_left:
            return ""
        try:
            self._connection.check_async_error()
        except self._errors as error:
            return f"NCCL lost the connection to other GPUs: {_in_words(error)}"
        return ""

    def on_abort(self) -> None:
        self._leave(self._connection.abort)

    def on_close(self) -> None:
        self._leave(self._connection.destroy)

    def _leave(self, call: Callable[[], None]) -> None:
        def leave() -> None:
            with suppress(*self._errors):  # the connection is of no more use in any case
                call()

        self._has_left = True
        thread = threading.Thread(target=leave, name="leaving NCCL", daemon=True)
        thread.start()
        thread.join(_SECONDS_TO_LEAVE)

    def _start(self, collective: str, array: Array, action: Callable[[], None]) -> Work:
        """Run `action` on the stream for communication, once the current stream has reached this point."""
        if array.size == 0:
            return Finished()
        self._base.check_open()
        # NCCL blocks until all ranks are here when it connects to them: in the first collective of each kind.
        with self.status.waiting(collective, array.nbytes):
            self._called.record(self._cuda.get_current_stream())
            self._stream.wait_event(self._called)
            with self._stream:
                action()
            over = self._cuda.Event(disable_timing=True)
            over.record(self._stream)
        return _OnStream(self._waits, over, action)

    def _sum(self, array: Array) -> None:
        sent = self._as_sent(array)
        pointer, name = address(sent), self._name(sent)
        self._connection.allReduce(pointer, pointer, array.size, name, self._nccl.NCCL_SUM, self._stream.ptr)
        if sent is not array:
            array[...] = sent

    def _sum_parts(self, array: Array, bounds: Sequence[int]) -> None:
        sent = self._as_sent(array)
        with self._together():
            for rank, part in self._parts(sent, bounds):
                pointer, name = address(part), self._name(part)
                self._connection.reduce(pointer, pointer, part.size, name, self._nccl.NCCL_SUM, rank, self._stream.ptr)
        if sent is not array:
            own = slice(bounds[self.rank], bounds[self.rank + 1])
            array[own] = sent[own]

    def _gather(self, array: Array, bounds: Sequence[int]) -> None:
        with self._together():
            for rank, part in self._parts(array, bounds):
                self._spread(part, rank)

    def _spread(self, array: Array, root: int) -> None:
        pointer = address(array)
        self._connection.broadcast(pointer, pointer, array.size, self._name(array), root, self._stream.ptr)

    def _swap(self, outgoing: Array, incoming: Array, peer: int) -> None:
        name, stream = self._name(outgoing), self._stream.ptr
        with self._together():
            if outgoing.size:
                self._connection.send(address(outgoing), outgoing.size, name, peer, stream)
            if incoming.size:
                self._connection.recv(address(incoming), incoming.size, name, peer, stream)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Start the calls within the block together: none waits for the end of another."""
        self._nccl.groupStart()
        try:
            yield
        finally:
            self._nccl.groupEnd()

    def _parts(self, array: Array, bounds: Sequence[int]) -> Iterator[tuple[int, Array]]:
        """Yield the parts of `array` that are not empty, each with the rank that it belongs to."""
        for rank, (start, stop) in enumerate(pairwise(bounds)):
            if start < stop:
                yield rank, array[start:stop]

    def _as_sent(self, array: Array) -> Array:
        """Return `array` [N], or its rounded copy. One buffer serves all copies: one stream uses them in order."""
        if array.dtype != np.float32 or self._wire_dtype == np.float32:
            return array
        if self._rounded.size < array.size:
            self._rounded = zeros(array.size, _BFLOAT16, self.device)
        rounded = self._rounded[: array.size]
        rounded[...] = array
        return rounded

    def _name(self, array: Array) -> int:
        return getattr(self._nccl, _NAMES[array.dtype.name])


def _in_words(error: Exception) -> str:
    """Return NCCL's message, or the number of a status that CuPy does not know."""
    return f"status {error}" if isinstance(error, KeyError) else str(error)


class _OnStream:
    """A collective on the stream for communication; the event `over` marks its end."""

    def __init__(self, waits: StreamWaits, over: Any, action: Callable[[], None]) -> None:
        """Keep `action`, and so its arrays: their memory must not be reused before the collective has ended."""
        self._waits, self._over = waits, over
        self._action: Callable[[], None] | None = action

    def wait(self) -> None:
        if self._action is not None:
            self._waits.wait_for(self._over)
            self._action = None
