"""What MPI needs from a host before it starts. Without it MPICH ends in a bus error, or prints a page of its own.

MPICH keeps what the ranks of a host exchange in files of /dev/shm. UCX, which carries its messages, takes several times
as much there, unless a variable excludes that transport.
"""

import os
import sys
import time
from pathlib import Path

from lucid.distributed.communicators.announcement import announced
from lucid.errors import LaunchError
from lucid.files import check_writable, reason_of
from lucid.launch.limits import HostMemory
from lucid.launch.placement import LocalRank
from lucid.launch.processes import SECONDS_TO_FORWARD, end_all

SHARED_MEMORY = Path("/dev/shm")
# Bytes that MPICH 5.0 takes for a rank, and those that it takes with UCX's; UCX crashes where it finds only a part.
_OF_RANK = 1_150_000
_OF_RANK_WITH_UCX, _BEYOND = 5_600_000, 16 << 20
# UCX's choice of transports, and all of them but the one in /dev/shm.
_UCX_TRANSPORTS, _WITHOUT_FILES = "UCX_TLS", "^posix"
# A rank that refuses lets the first rank of the job speak, and then those of its host that come before it.
_SECONDS_FOR_THE_FIRST_RANK, _SECONDS_FOR_A_RANK, _MOST_TURNS = 2, 0.5, 20


def prepare_start() -> None:
    """Check the shared memory of this host, and keep UCX out of it where it is small, before MPI is initialised.

    Raises `LaunchError` if MPI cannot start; then one rank of the host speaks. Launchers of MPI libraries that need no
    shared memory, such as Open MPI, are not checked.
    """
    announcement = announced()
    if announcement is None or announcement.launcher != "PMI":
        return
    local = LocalRank.announced(os.environ)
    ranks = max(1, local.ranks)
    lack = lack_of_shared_memory(ranks)
    if lack:
        _refuse(f"MPI cannot start on {os.uname().nodename}: {lack}", announcement.rank, local.rank)
    if size_and_free()[1] < ranks * _OF_RANK_WITH_UCX + _BEYOND:
        os.environ.setdefault(_UCX_TRANSPORTS, _WITHOUT_FILES)


def lack_of_shared_memory(ranks: int, folder: Path = SHARED_MEMORY) -> str | None:
    """Return what keeps one of so many ranks from starting on this host, and what to do about it; None if nothing does.

    The other ranks may have started already, and taken their part of the memory.
    """
    advice = "(docker and podman: --shm-size=1g)"
    if not folder.is_dir():
        return f"{folder}, the folder of shared memory, is missing: mount a tmpfs there {advice}"
    try:
        check_writable(folder)
    except OSError as error:
        return f"shared memory in {folder} cannot be written ({reason_of(error)}): mount a tmpfs there {advice}"
    size, free = size_and_free(folder)
    if size >= ranks * _OF_RANK and free >= _OF_RANK:
        return None
    return (
        f"a rank takes {_OF_RANK / 1e6:.2f} MB of shared memory to start, but {folder} has {size / 1e6:,.2f} MB for "
        f"{ranks} rank{'s' * (ranks > 1)}, of which {free / 1e6:,.2f} are free: make it larger {advice}, or delete "
        "files there"
    )


def size_and_free(folder: Path = SHARED_MEMORY) -> tuple[int, int]:
    """Return the size of the file system of `folder` and how much of it is free, in bytes."""
    status = os.statvfs(folder)
    if status.f_blocks == 0:
        memory = HostMemory.read()  # it has no limit of its own
        return memory.most, memory.free
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


def _refuse(message: str, rank: int, local_rank: int) -> None:
    """Print a message, end all ranks, and raise a `LaunchError` that is reported.

    If several ranks refuse, the first speaks, and the others are ended while they wait.
    """
    time.sleep(_SECONDS_FOR_THE_FIRST_RANK * (rank > 0) + _SECONDS_FOR_A_RANK * min(local_rank, _MOST_TURNS))
    sys.stderr.write(f"lucid: {message}\n")
    sys.stderr.flush()
    time.sleep(SECONDS_TO_FORWARD)
    error = LaunchError(message)
    error.reported = True
    end_all(error.exit_code)
    raise error
