"""Short messages between ranks over MPI, from a thread other than the one that runs the collectives.

They travel on another duplicate of COMM_WORLD. So they cannot mix with the collectives of the main thread, and arrive
while that thread waits. Nothing may block here: a peer may be stopped, or a link cut in the middle of a message. So
there is always a posted receive for the longest message, which is only tested, and a send is never waited for. `close`
alone waits: until the messages of all ranks have left, which then are all there.
"""

import time
from typing import Any

from lucid.distributed.communicators.agreement import agreed
from lucid.distributed.communicators.communicator import LONGEST_MESSAGE, SideChannel
from lucid.errors import LaunchError

_SECONDS_BETWEEN_TESTS = 1e-4


class MPISideChannel(SideChannel):
    """A side channel between the ranks of an mpi4py communicator."""

    def __init__(self, mpi: Any, ranks: Any) -> None:
        """Duplicate `ranks`; all of them call this. `mpi` is the module `mpi4py.MPI`."""
        if mpi.Query_thread() < mpi.THREAD_MULTIPLE:
            message = (
                "the MPI library does not let two threads communicate (MPI_THREAD_MULTIPLE), which the watchdog needs: "
                "use another build of it, or set train.watchdog_seconds=0 (lucid evaluate: --watchdog-seconds 0)"
            )
            raise agreed(LaunchError(message))  # all ranks load this library
        self._mpi = mpi
        self._ranks = ranks.Dup()
        self._arriving = bytearray(LONGEST_MESSAGE)
        self._receipt = self._post_receipt()
        # MPI reads a message until its send has completed.
        self._sending: list[tuple[Any, bytes]] = []

    def send(self, message: bytes, peer: int) -> None:
        self._forget_sent()
        self._sending.append((self._ranks.Isend([message, self._mpi.BYTE], peer), message))

    def receive(self) -> tuple[int, bytes] | None:
        status = self._mpi.Status()
        if not self._receipt.Test(status):
            return None
        message = bytes(self._arriving[: status.Get_count(self._mpi.BYTE)])
        self._receipt = self._post_receipt()
        return status.source, message

    def close(self) -> None:
        # A long message leaves only when its receiver takes it. So each rank goes on receiving until none sends.
        all_have_sent = None
        while all_have_sent is None or not all_have_sent.Test():
            self.receive()
            self._forget_sent()
            if all_have_sent is None and not self._sending:
                all_have_sent = self._ranks.Ibarrier()
            time.sleep(_SECONDS_BETWEEN_TESTS)
        self._receipt.Cancel()
        self._receipt.Wait()
        self._ranks.Free()

    def _forget_sent(self) -> None:
        self._sending = [(request, sent) for request, sent in self._sending if not request.Test()]

    def _post_receipt(self) -> Any:
        return self._ranks.Irecv([self._arriving, self._mpi.BYTE], self._mpi.ANY_SOURCE)
