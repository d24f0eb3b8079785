"""NCCL over MPI: the ranks' memory is the host's, and a collective is done when it is submitted, in the order of ranks.

As in NCCL, each rank of a communicator needs a GPU of its own. All ranks of MPI's world can be one, and a rank alone.

EMULATED_NCCL_ERROR=STATUS:COUNT in the environment lets check_async_error find this status once so many operations were
started on the communicator; a test in the same process sets `cupy.emulation.asynchronous_error`.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from cupy import _places, emulation
from cupy.cuda import device

available = True

NCCL_SUM, NCCL_PROD, NCCL_MAX, NCCL_MIN, NCCL_AVG = range(5)
NCCL_INT8 = NCCL_CHAR = 0
NCCL_UINT8 = 1
NCCL_INT32 = NCCL_INT = 2
NCCL_UINT32 = 3
NCCL_INT64 = 4
NCCL_UINT64 = 5
NCCL_FLOAT16 = NCCL_HALF = 6
NCCL_FLOAT32 = NCCL_FLOAT = 7
NCCL_FLOAT64 = NCCL_DOUBLE = 8
NCCL_BFLOAT16 = 9

_TYPES = tuple(
    map(
        np.dtype,
        (
            *(np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64),
            *(np.float16, np.float32, np.float64, ml_dtypes.bfloat16),
        ),
    )
)
_OPERATIONS = {NCCL_SUM: np.add, NCCL_PROD: np.multiply, NCCL_MAX: np.maximum, NCCL_MIN: np.minimum}
_ERRORS = {
    1: "NCCL_ERROR_UNHANDLED_CUDA_ERROR: unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
    2: "NCCL_ERROR_SYSTEM_ERROR: unhandled system error (run with NCCL_DEBUG=INFO for details)",
    3: "NCCL_ERROR_INTERNAL_ERROR: internal error - please report this issue to the NCCL developers",
    4: "NCCL_ERROR_INVALID_ARGUMENT: invalid argument (run with NCCL_DEBUG=WARN for details)",
    5: "NCCL_ERROR_INVALID_USAGE: invalid usage (run with NCCL_DEBUG=WARN for details)",
    6: "NCCL_ERROR_REMOTE_ERROR: remote process exited or there was a network error",
}

_local = threading.local()


class NcclError(RuntimeError):
    """What a call of NCCL returned, other than success."""

    def __init__(self, status: int) -> None:
        # CuPy, too, looks for its name of the status, and fails where it has none.
        super().__init__(_ERRORS[status])
        self.status = status


def get_version() -> int:
    return 22_809


def get_build_version() -> int:
    return 22_809


def get_unique_id() -> bytes:
    return secrets.token_bytes(128)


def groupStart() -> None:
    _groups().append([])


def groupEnd() -> None:
    """Start all that was called since groupStart, as one operation of the stream."""
    *outer, calls = _groups()
    if outer:
        outer[-1] += calls
        _groups().pop()
        return
    _groups().pop()
    for stream in dict.fromkeys(call[0] for call in calls):
        own = [call[1:] for call in calls if call[0] == stream]
        _submit(own, stream)


def _groups() -> list[list[Any]]:
    if not hasattr(_local, "groups"):
        _local.groups = []
    return _local.groups


def _submit(calls: list[Any], stream: int) -> None:
    def run() -> None:
        # All messages between two ranks are under way before one is waited for; collectives keep their order.
        waits = [start() for start, _ in calls]
        for wait in waits:
            wait()

    emulation.submit(run, stream, [each for _, used in calls for each in used])


class NcclCommunicator:
    """Some ranks, each with a GPU of its own. To make one is a collective."""

    def __init__(self, ndev: int, commId: bytes, rank: int) -> None:
        from mpi4py import MPI

        world = MPI.COMM_SELF if ndev == 1 else MPI.COMM_WORLD
        if world.size != ndev or world.rank != rank:
            raise NotImplementedError("the emulation of NCCL takes all ranks of MPI's world, in their order, or one")
        assert len(commId) == 128, "this is no identifier of NCCL's"
        self._mpi, self._rank, self._size = world.Dup(), rank, ndev
        self._device, self._aborted, self._started = device.get_device_id(), False, 0
        cards = self._mpi.allgather((socket.gethostname(), device.Device().pci_bus_id, commId))
        if len({card[:2] for card in cards}) < ndev or len({card[2] for card in cards}) > 1:
            raise NcclError(5)

    def rank_id(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size

    def device_id(self) -> int:
        return self._device

    def destroy(self) -> None:
        self._aborted = True

    def abort(self) -> None:
        """Let whoever waits in an operation fail. May be called from any thread."""
        self._aborted = True

    def check_async_error(self) -> None:
        status, _, count = os.environ.get("EMULATED_NCCL_ERROR", "0:0").partition(":")
        found = emulation.asynchronous_error or (int(status) if self._started >= int(count or 0) else 0)
        if found:
            raise NcclError(found)

    def allReduce(self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, stream: int) -> None:
        send, receive = self._places((sendbuf, count), (recvbuf, count), datatype)
        parts = np.empty((self._size, count), send.dtype)

        def start() -> Callable[[], None]:
            return self._after(
                self._mpi.Iallgather(_bytes(send.copy()), _bytes(parts)), lambda: _combine(parts, op, receive)
            )

        self._call(start, stream, sendbuf, recvbuf)

    def reduceScatter(self, sendbuf: int, recvbuf: int, recvcount: int, datatype: int, op: int, stream: int) -> None:
        send, receive = self._places((sendbuf, recvcount * self._size), (recvbuf, recvcount), datatype)
        parts = np.empty((self._size, recvcount), send.dtype)

        def start() -> Callable[[], None]:
            return self._after(
                self._mpi.Ialltoall(_bytes(send.copy()), _bytes(parts)), lambda: _combine(parts, op, receive)
            )

        self._call(start, stream, sendbuf, recvbuf)

    def reduce(self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, root: int, stream: int) -> None:
        is_root = self._rank == root
        send, receive = self._places((sendbuf, count), (recvbuf if is_root else sendbuf, count), datatype)
        parts = np.empty((self._size, count), send.dtype)

        def start() -> Callable[[], None]:
            request = self._mpi.Igather(_bytes(send.copy()), _bytes(parts) if is_root else None, root)
            return self._after(request, lambda: _combine(parts, op, receive) if is_root else None)

        self._call(start, stream, sendbuf, *(recvbuf,) if is_root else ())

    def allGather(self, sendbuf: int, recvbuf: int, count: int, datatype: int, stream: int) -> None:
        send, receive = self._places((sendbuf, count), (recvbuf, count * self._size), datatype)
        parts = np.empty(count * self._size, send.dtype)

        def start() -> Callable[[], None]:
            return self._after(
                self._mpi.Iallgather(_bytes(send.copy()), _bytes(parts)), lambda: np.copyto(receive, parts)
            )

        self._call(start, stream, sendbuf, recvbuf)

    def broadcast(self, sendbuff: int, recvbuff: int, count: int, datatype: int, root: int, stream: int) -> None:
        is_root = self._rank == root
        send, receive = self._places((sendbuff if is_root else recvbuff, count), (recvbuff, count), datatype)
        message = np.empty(count, send.dtype)

        def start() -> Callable[[], None]:
            message[...] = send
            return self._after(self._mpi.Ibcast(_bytes(message), root), lambda: np.copyto(receive, message))

        self._call(start, stream, recvbuff, *(sendbuff,) if is_root else ())

    def bcast(self, buff: int, count: int, datatype: int, root: int, stream: int) -> None:
        self.broadcast(buff, buff, count, datatype, root, stream)

    def send(self, sendbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        send, _ = self._places((sendbuf, count), (sendbuf, count), datatype)

        def start() -> Callable[[], None]:
            message = send.copy()
            # The closure keeps the message until it has been sent.
            return self._after(self._mpi.Isend(_bytes(message), peer), lambda: message.shape)

        self._call(start, stream, sendbuf)

    def recv(self, recvbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        receive, _ = self._places((recvbuf, count), (recvbuf, count), datatype)
        message = np.empty(count, receive.dtype)

        def start() -> Callable[[], None]:
            return self._after(self._mpi.Irecv(_bytes(message), peer), lambda: np.copyto(receive, message))

        self._call(start, stream, recvbuf)

    def _places(self, send: tuple[int, int], receive: tuple[int, int], datatype: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the elements at two addresses, all of which have to be memory of the device."""
        kind = _TYPES[datatype]
        found = []
        for address, count in (send, receive):
            if count:
                _places.memory_at(address, count * kind.itemsize)
            found.append(_places.bytes_at(address, count * kind.itemsize).view(kind))
        return found[0], found[1]

    def _call(self, start: Callable[[], Callable[[], None]], stream: int, *addresses: int) -> None:
        if self._aborted:
            raise NcclError(5)
        self._started += 1
        used = [_places.memory_at(address, 0) for address in addresses if address]
        groups = _groups()
        if groups:
            groups[-1].append((stream, start, used))
        else:
            _submit([(start, used)], stream)

    def _after(self, request: Any, finish: Callable[[], Any]) -> Callable[[], None]:
        """Return what waits for a request, until the communicator is aborted, and then finishes."""

        def wait() -> None:
            while not request.Test():
                if self._aborted:
                    raise NcclError(6)
                time.sleep(0)
            finish()

        return wait


def _bytes(array: np.ndarray) -> Any:
    from mpi4py import MPI

    return [array.reshape(-1).view(np.uint8), MPI.BYTE]


def _combine(parts: np.ndarray, op: int, out: np.ndarray) -> None:
    """Write what the operation makes of the ranks' parts, rounded once."""
    wide = parts.astype(np.float32) if parts.dtype.itemsize == 2 else parts
    if op == NCCL_AVG:
        out[...] = wide.mean(axis=0)
        return
    total = wide[0].copy()
    for part in wide[1:]:
        _OPERATIONS[op](total, part, out=total)
    out[...] = total
