"""How a process finds the others, and how it leaves them: however that comes about, it ends for all ranks."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from lucid.distributed.agreement import is_agreed
from lucid.distributed.backends.between_nodes import WireDtype
from lucid.distributed.backends.mpi import MPICommunicator
from lucid.distributed.backends.shared_memory import SharedMemoryCommunicator
from lucid.distributed.backends.single import SingleCommunicator
from lucid.distributed.communicator import Communicator
from lucid.distributed.guard import abort_on_exception, report_and_abort
from lucid.distributed.software import check_same_software
from lucid.distributed.topology import announced
from lucid.errors import ConfigError, LaunchError, LucidError

Backend = Literal["auto", "single", "mpi", "shared_memory"]
# What finds the other processes; other backends are made of it.
Group = SingleCommunicator | MPICommunicator


def connect(backend: Backend = "auto") -> Communicator:
    """Find the other processes, and return the communicator of this one: `join` and `choose` in one.

    Raises `LaunchError` if the processes were not started the way the backend needs them.
    """
    return choose(join("auto" if backend == "shared_memory" else backend), backend)


def join(group: Literal["auto", "single", "mpi"] = "auto") -> Group:
    """Find the other processes.

    "auto" takes MPI if a launcher announced itself in the environment, and one process alone otherwise. Raises
    `LaunchError` if the processes were not started that way, or run different versions.
    """
    if group not in ("auto", "single", "mpi"):
        raise ConfigError(f"backend {group!r} is not known: use 'auto', 'single', 'mpi' or 'shared_memory'")
    announcement = announced()
    if group == "mpi" or (group == "auto" and announcement is not None):
        return _all_the_same(MPICommunicator())
    if announcement is not None and announcement.size != 1:
        raise LaunchError(
            f"backend 'single' is for one process, but the launcher ({announcement.launcher}) started "
            f"{announcement.size or 'several'}: start it without a launcher, or use 'auto'"
        )
    return SingleCommunicator()


def _all_the_same(communicator: MPICommunicator) -> MPICommunicator:
    try:
        check_same_software(communicator, communicator.library)
    except LucidError as error:
        _tell(communicator, error)
        communicator.close()
        raise
    return communicator


def choose(group: Group, backend: Backend, wire_dtype: WireDtype = "float32") -> Communicator:
    """Return the communicator for the gradients of `group`. It ends with `group`; closing either closes both.

    "auto" takes shared memory where there are as many ranks on each node, and enough memory. Between nodes gradients
    travel as `wire_dtype`. Raises an agreed `LaunchError` if `backend` or `wire_dtype` is not for this group.
    """
    refusal = ""
    if backend == "single" and group.size > 1:
        refusal = f"distributed.backend is single, but there are {group.size} ranks: use auto"
    if backend == "shared_memory" and not group.evenly_spread:
        refusal = (
            f"distributed.backend is shared_memory, but the {group.size} ranks are not evenly spread over the "
            f"{group.node_count} nodes: start as many on each, or use auto"
        )
    if wire_dtype != "float32" and group.node_count > 1 and (backend == "mpi" or not group.evenly_spread):
        reason = "distributed.backend is mpi" if backend == "mpi" else "the ranks are not evenly spread over the nodes"
        refusal = f"distributed.wire_dtype is {wire_dtype}, but {reason}: plain MPI sends float32, so use float32"
    if refusal:
        error = LaunchError(refusal)
        error.agreed = True
        raise error
    if isinstance(group, SingleCommunicator) or group.size == 1 or not group.evenly_spread or backend == "mpi":
        return group
    return SharedMemoryCommunicator(group, backend == "shared_memory", wire_dtype)


@contextmanager
def session(group: Literal["auto", "single", "mpi"] = "auto") -> Iterator[Group]:
    """Join the other processes for the length of the block. `choose` gives a faster way for gradients.

    An error that every rank knows of (`LucidError.agreed`) is told by the first and leaves in order, marked `told`; any
    other, `sys.exit` included, on one of several ranks ends all of them at once, with its message.
    """
    communicator = join(group)
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
