"""How a process finds the others, chooses what carries gradients between them, and ends with them."""

import atexit
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from lucid.backend import CPU
from lucid.distributed.communicators.agreement import agreed, is_agreed
from lucid.distributed.communicators.announcement import announced, is_alone
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
from lucid.launch.processes import end_with_launcher

Backend = Literal["auto", "single", "mpi", "shared_memory", "nccl"]
# The communicators that find the other processes; the other backends are built on them.
ProcessGroup = SingleCommunicator | MPICommunicator


def connect(backend: Backend = "auto", device: str = CPU) -> Communicator:
    """Find the other processes, and return a communicator with them: `join` and `choose` in one call.

    On several ranks an uncaught exception then ends all of them (`abort_on_exception`). A program calls the
    communicator's `close` at its end; without that, its exit waits in MPI for the other ranks. Raises `LaunchError` if
    the processes were not started in the way that the backend needs.
    """
    group = join("auto" if backend == "shared_memory" or backend == "nccl" else backend)
    if group.size > 1:
        abort_on_exception(group)
        # A program that ends without `close` has not failed. To close here would wait for the other ranks, also after a
        # `sys.exit(1)` of this one, before mpi4py can end them.
        atexit.register(group.status.report_end)
    return choose(group, backend, device=device)


def join(group: Literal["auto", "single", "mpi"] = "auto") -> ProcessGroup:
    """Find the other processes.

    "auto" uses MPI if a launcher announced several processes in the environment; otherwise the process is alone, and
    needs no MPI. Raises `LaunchError` if the processes were not started in the way that `group` needs, or run different
    versions.
    """
    if group not in ("auto", "single", "mpi"):
        raise ConfigError(f"backend {group!r} is not known: use 'auto', 'single', 'mpi', 'shared_memory' or 'nccl'")
    end_with_launcher()
    announcement = announced()
    if group == "mpi" or (group == "auto" and not is_alone()):
        return _with_one_version(MPICommunicator())
    if announcement is not None and announcement.size != 1:
        raise LaunchError(
            f"backend 'single' is for one process, but the launcher ({announcement.launcher}) started "
            f"{announcement.size or 'several'}: start it without a launcher, or use 'auto'"
        )
    return SingleCommunicator()


def _with_one_version(communicator: MPICommunicator) -> MPICommunicator:
    try:
        check_same_software(communicator, communicator.library)
    except LucidError as error:
        _report(communicator, error)
        communicator.close()
        raise
    return communicator


def choose(group: ProcessGroup, backend: Backend, wire_dtype: WireDtype = "float32", device: str = CPU) -> Communicator:
    """Return the communicator for the gradients of `group` on `device`. To close either closes both.

    On the CPU, "auto" chooses shared memory if each node has equally many ranks and enough memory. Between nodes
    gradients travel as `wire_dtype`. With "cuda" each rank takes a GPU (see `device_for`), and "auto" chooses NCCL,
    which sums in `wire_dtype`. If NCCL is not available, gradients go through the host's memory, over the backend that
    "auto" chooses on the CPU, and `remark` gives the reason. "mpi" and "shared_memory" select this way explicitly.

    Raises an agreed `LaunchError` if this group cannot use `backend` or `wire_dtype`, and an agreed `ConfigError` if a
    rank has no such device.
    """
    if backend == "single" and group.size > 1:
        raise _refusal(f"distributed.backend is single, but there are {group.size} ranks: use auto")
    if device == CPU:
        return _choose_on_host(group, backend, wire_dtype)
    device = device_for(group, device)
    if isinstance(group, SingleCommunicator) or group.size == 1:
        return SingleCommunicator(device, group.status)
    obstacle = why_not_nccl(group, device) if backend in ("auto", "nccl") else "another backend was chosen"
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
            f"{group.node_count} nodes: start equally many on each, or use auto"
        )
    if wire_dtype != "float32" and group.node_count > 1 and (backend == "mpi" or not group.evenly_spread):
        reason = "distributed.backend is mpi" if backend == "mpi" else "the ranks are not evenly spread over the nodes"
        raise _refusal(f"distributed.wire_dtype is {wire_dtype}, but {reason}: plain MPI sends float32, so use float32")
    if isinstance(group, SingleCommunicator) or group.size == 1 or not group.evenly_spread or backend == "mpi":
        return group
    return SharedMemoryCommunicator(group, backend == "shared_memory", wire_dtype)


def _refusal(message: str) -> LaunchError:
    return agreed(LaunchError(message))


@contextmanager
def session(group: Literal["auto", "single", "mpi"] = "auto") -> Iterator[ProcessGroup]:
    """Join the other processes for the duration of the block. `choose` returns a faster communicator for gradients.

    The first rank prints an error that every rank knows of (`LucidError.agreed`), and all ranks leave the block in
    order with that error, marked `reported`. Any other error on one of several ranks, `sys.exit` included, ends all
    ranks at once, with its message.
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
            # Print before the others can leave: some launchers end all ranks when the first one ends with an exit code.
            _report(communicator, error)
        raise
    finally:
        # Only an orderly end comes here. A later failure of this rank no longer concerns the others.
        sys.stdout.flush()
        sys.stderr.flush()
        communicator.close()
        sys.excepthook, threading.excepthook = hooks


def _report(communicator: Communicator, error: LucidError) -> None:
    if communicator.rank == 0:
        sys.stderr.write(f"lucid: {error}\n")
    error.reported = True
