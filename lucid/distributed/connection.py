"""How a process finds the others, and how it leaves them: however that comes about, it ends for all ranks."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from lucid.backend import CPU
from lucid.distributed.communicators.agreement import is_agreed
from lucid.distributed.communicators.announcement import announced
from lucid.distributed.communicators.between_nodes import WireDtype
from lucid.distributed.communicators.communicator import Communicator
from lucid.distributed.communicators.devices import device_for, why_not_nccl
from lucid.distributed.communicators.mpi import MPICommunicator
from lucid.distributed.communicators.nccl import NCCLCommunicator
from lucid.distributed.communicators.shared_memory import SharedMemoryCommunicator
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.distributed.communicators.staged import StagedCommunicator
from lucid.distributed.health.guard import abort_on_exception, report_and_abort
from lucid.distributed.health.software import check_same_software
from lucid.errors import ConfigError, LaunchError, LucidError

Backend = Literal["auto", "single", "mpi", "shared_memory", "nccl"]
# What finds the other processes; other backends are made of it.
ProcessGroup = SingleCommunicator | MPICommunicator


def connect(backend: Backend = "auto", device: str = CPU) -> Communicator:
    """Find the other processes, and return the communicator of this one: `join` and `choose` in one.

    Raises `LaunchError` if the processes were not started the way the backend needs them.
    """
    group = join("auto" if backend == "shared_memory" or backend == "nccl" else backend)
    return choose(group, backend, device=device)


def join(group: Literal["auto", "single", "mpi"] = "auto") -> ProcessGroup:
    """Find the other processes.

    "auto" takes MPI if a launcher announced itself in the environment, and one process alone otherwise. Raises
    `LaunchError` if the processes were not started that way, or run different versions.
    """
    if group not in ("auto", "single", "mpi"):
        raise ConfigError(f"backend {group!r} is not known: use 'auto', 'single', 'mpi', 'shared_memory' or 'nccl'")
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


def choose(group: ProcessGroup, backend: Backend, wire_dtype: WireDtype = "float32", device: str = CPU) -> Communicator:
    """Return the communicator for gradients of `group` on `device`. It ends with `group`; closing either closes both.

    On the CPU, "auto" takes shared memory where there are as many ranks on each node, and enough memory. Between nodes
    gradients travel as `wire_dtype`. With "cuda" each rank takes a GPU, as `device_for` says, and "auto" takes NCCL,
    over which all sums travel as `wire_dtype`; where NCCL cannot be had, it goes through the host's memory, in the way
    that "auto" takes there, and `remark` says so and why; "mpi" and "shared_memory" ask for that.

    Raises an agreed `LaunchError` if `backend` or `wire_dtype` is not for this group, and a `ConfigError` if a rank has
    no such device.
    """
    if backend == "single" and group.size > 1:
        raise _refusal(f"distributed.backend is single, but there are {group.size} ranks: use auto")
    if device == CPU:
        return _choose_on_host(group, backend, wire_dtype)
    device = device_for(group, device)
    if isinstance(group, SingleCommunicator) or group.size == 1:
        return SingleCommunicator(device, group.whereabouts)
    obstacle = why_not_nccl(group, device) if backend in ("auto", "nccl") else "it is not asked for"
    if not obstacle:
        return NCCLCommunicator(group, device, wire_dtype)
    if backend == "nccl":
        raise _refusal(f"distributed.backend is nccl, but {obstacle}: change that, or use auto")
    communicator = StagedCommunicator(_choose_on_host(group, backend, wire_dtype), device)
    if backend == "auto":
        communicator.remark = f"gradients go through the host's memory, not by NCCL, which is slower: {obstacle}"
    return communicator


def _choose_on_host(group: ProcessGroup, backend: Backend, wire_dtype: WireDtype) -> Communicator:
    if backend == "nccl":
        raise _refusal("distributed.backend is nccl, which is for GPUs, but the device is cpu: use auto")
    if backend == "shared_memory" and not group.evenly_spread:
        raise _refusal(
            f"distributed.backend is shared_memory, but the {group.size} ranks are not evenly spread over the "
            f"{group.node_count} nodes: start as many on each, or use auto"
        )
    if wire_dtype != "float32" and group.node_count > 1 and (backend == "mpi" or not group.evenly_spread):
        reason = "distributed.backend is mpi" if backend == "mpi" else "the ranks are not evenly spread over the nodes"
        raise _refusal(f"distributed.wire_dtype is {wire_dtype}, but {reason}: plain MPI sends float32, so use float32")
    if isinstance(group, SingleCommunicator) or group.size == 1 or not group.evenly_spread or backend == "mpi":
        return group
    return SharedMemoryCommunicator(group, backend == "shared_memory", wire_dtype)


def _refusal(message: str) -> LaunchError:
    error = LaunchError(message)
    error.agreed = True
    return error


@contextmanager
def session(group: Literal["auto", "single", "mpi"] = "auto") -> Iterator[ProcessGroup]:
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
    error.reported = True
