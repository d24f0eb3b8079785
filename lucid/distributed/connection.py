"""How a process finds the others, and how it leaves them: however that comes about, it ends for all ranks."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from lucid.distributed.agreement import is_agreed
from lucid.distributed.backends.single import SingleCommunicator
from lucid.distributed.communicator import Communicator
from lucid.distributed.guard import abort_on_exception, report_and_abort
from lucid.distributed.topology import announced
from lucid.errors import ConfigError, LaunchError, LucidError


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


@contextmanager
def session(backend: Literal["auto", "single", "mpi"] = "auto") -> Iterator[Communicator]:
    """Connect for the length of the block.

    An error that every rank knows of (`LucidError.agreed`) is told by the first and leaves in order, marked `told`; any
    other, `sys.exit` included, on one of several ranks ends all of them at once, with its message.
    """
    communicator = connect(backend)
    hooks = sys.excepthook, threading.excepthook
    abort_on_exception(communicator)
    try:
        yield communicator
    except BaseException as error:
        if communicator.size > 1 and not is_agreed(error):
            report_and_abort(communicator, error)
        if isinstance(error, LucidError):
            # Before the others may leave: some launchers end all ranks when the first has gone with an exit code.
            _tell(communicator, error)
        raise
    finally:
        # Only in order do we come here. What fails later, on this rank, no longer concerns the others.
        sys.stdout.flush()
        sys.stderr.flush()
        communicator.close()
        sys.excepthook, threading.excepthook = hooks


def _tell(communicator: Communicator, error: LucidError) -> None:
    if communicator.rank == 0:
        sys.stderr.write(f"lucid: {error}\n")
    error.told = True
