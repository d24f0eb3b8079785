"""Several processes that train as one: communicators, data parallelism, and what to do when one of them fails.

Importing this initialises nothing; `connect` does.
"""

from typing import Literal

from lucid.distributed.backends.single import SingleCommunicator
from lucid.distributed.communicator import Communicator, Work
from lucid.distributed.data_parallel import DistributedDataParallel
from lucid.distributed.guard import StopRequest, abort_on_exception
from lucid.distributed.topology import announced, is_first_rank
from lucid.errors import ConfigError, LaunchError

__all__ = [
    "Communicator",
    "DistributedDataParallel",
    "StopRequest",
    "Work",
    "abort_on_exception",
    "announced",
    "connect",
    "is_first_rank",
]


def connect(backend: Literal["auto", "single", "mpi"] = "auto") -> Communicator:
    """Return the communicator of this process.

    "auto" takes MPI if a launcher announced itself in the environment, and one process alone otherwise. Raises
    `LaunchError` if the processes were not started the way the backend needs them.
    """
    if backend not in ("auto", "single", "mpi"):
        raise ConfigError(f"backend {backend!r} is not known: use 'auto', 'single' or 'mpi'")
    announcement = announced()
    if backend == "mpi" or (backend == "auto" and announcement is not None):
        from lucid.distributed.backends.mpi import MPICommunicator

        return MPICommunicator()
    if announcement is not None and announcement.size != 1:
        raise LaunchError(
            f"backend 'single' is for one process, but the launcher ({announcement.launcher}) started "
            f"{announcement.size or 'several'}: start it without a launcher, or use 'auto'"
        )
    return SingleCommunicator()
