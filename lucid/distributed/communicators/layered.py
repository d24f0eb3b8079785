"""A communicator that is built on another one of the same ranks."""

from typing import NoReturn

from lucid.backend import Array
from lucid.distributed.communicators.communicator import Communicator, SideChannel, Work


class LayeredCommunicator(Communicator):
    """The ranks of `base`. Closing either closes both; `base` carries what a subclass does not carry itself."""

    def __init__(self, base: Communicator) -> None:
        self.rank, self.size = base.rank, base.size
        self.local_rank, self.node_count = base.local_rank, base.node_count
        self.status = base.status
        self._base = base

    def send_receive(self, outgoing: Array, incoming: Array, peer: int) -> Work:
        return self._base.send_receive(outgoing, incoming, peer)

    def barrier(self) -> None:
        self._base.barrier()

    def all_reduce_scalar(self, value: float) -> float:
        return self._base.all_reduce_scalar(value)

    def side_channel(self) -> SideChannel | None:
        return self._base.side_channel()

    def failure(self) -> str:
        return self._base.failure()

    def abort(self, code: int) -> NoReturn:
        self._base.abort(code)

    def close(self) -> None:
        self._base.close()
