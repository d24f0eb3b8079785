"""Who and where this process is, by the word of its launcher and operating system, before MPI is initialised.

Launchers tell each process its rank in the environment. That word serves three ends: to know whether to use MPI at
all, to let one process alone speak to the user while MPI is not up, and to notice when the launcher belongs to another
MPI than the one loaded here; each process would then take itself for a world of one, silently.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lucid.errors import LaunchError

_ROOT = Path("/")
# Version 1 of control groups has a number for no limit, which depends on the page size.
_NO_LIMIT = 2**62


@dataclass(frozen=True)
class Announcement:
    """What a launcher says of this process. `size` and `local_rank` are None where it does not tell them."""

    launcher: str
    rank: int
    size: int | None
    local_rank: int | None


@dataclass(frozen=True)
class _Launcher:
    """The names of the variables in which a launcher speaks."""

    name: str
    rank: str
    size: str | None
    local_ranks: tuple[str, ...] = ()
    # A variable that has to be there as well, where the others alone do not prove a launch.
    proof: str | None = None


# The inner launcher before the outer one: mpiexec inside a SLURM step inherits the step's variables. SLURM sets a rank
# for the batch script as well; only a step has a number.
_LAUNCHERS = (
    _Launcher("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("OMPI_COMM_WORLD_LOCAL_RANK",)),
    _Launcher("PMI", "PMI_RANK", "PMI_SIZE", ("MPI_LOCALRANKID", "SLURM_LOCALID")),
    _Launcher("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("SLURM_LOCALID",), proof="SLURM_STEP_ID"),
    _Launcher("PMIx", "PMIX_RANK", None),
)


def announced() -> Announcement | None:
    """Return what the launcher announced, or None if this process was started by itself."""
    for launcher in _LAUNCHERS:
        rank = _number(launcher.rank)
        if rank is None or (launcher.proof and launcher.proof not in os.environ):
            continue
        local_ranks = [number for number in map(_number, launcher.local_ranks) if number is not None]
        return Announcement(
            launcher=launcher.name,
            rank=rank,
            size=_number(launcher.size) if launcher.size else None,
            local_rank=local_ranks[0] if local_ranks else None,
        )
    return None


def is_first_rank() -> bool:
    """Return whether this process is the one that speaks to the user. It does not need MPI."""
    announcement = announced()
    return announcement is None or announcement.rank == 0


def check_world_size(world_size: int) -> None:
    """Raise `LaunchError` unless MPI's world is as large as the launcher announced."""
    announcement = announced()
    if announcement is None or announcement.size in (None, world_size):
        return
    raise LaunchError(
        f"the launcher ({announcement.launcher}) announced {announcement.size} processes, but the MPI library that "
        f"this one loaded knows of {world_size}: they do not belong together. {how_to_launch(announcement.size)}"
    )


def how_to_launch(size: int | None) -> str:
    """Return the sentence that tells how to start `size` processes with the MPI of this environment."""
    beside = Path(sys.executable).parent / "mpiexec"
    count = "N" if size is None else size
    if beside.exists():
        return f"Use this environment's own launcher, {beside} -n {count} ..., or srun --mpi=pmi2 under SLURM."
    return (
        f"Use the mpiexec of the MPI library that mpi4py loads (`{sys.executable} -m mpi4py --mpi-library` names it), "
        "or under SLURM srun --mpi=pmi2 for MPICH and --mpi=pmix for Open MPI."
    )


def available_cores() -> int:
    """Return how many physical cores this process may use: those of its affinity mask, at most its control groups'."""
    cores = _physical_cores(allowed_cpus())
    return max(1, min(cores, int(cpu_limit() or cores)))


def allowed_cpus() -> frozenset[int]:
    """Return the hardware threads of this process's affinity mask."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def cpu_limit(root: Path = _ROOT) -> float | None:
    """Return how many hardware threads' time the control groups of this process let it have, None: all of it."""
    limits = []
    for quota, period in _limits(root, "cpu", ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        if quota.isdigit():  # not "max", or -1
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit(root: Path = _ROOT) -> tuple[int, int] | None:
    """Return how many bytes the control groups of this process allow, and how many of them are free; None: no limit.

    The groups count all processes in them. Of files' pages, those that nobody has used of late count as free, as the
    kernel gives them up for others.
    """
    files = ("memory.max", "memory.current", "memory.stat")
    old_files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    allowed, free = [], []
    for limit, used, *statistics in _limits(root, "memory", files, old_files):
        if limit.isdigit() and int(limit) < _NO_LIMIT:  # not "max"
            counts = dict(zip(statistics[::2], map(int, statistics[1::2]), strict=True))
            unused = counts.get("total_inactive_file", counts.get("inactive_file", 0))
            allowed.append(int(limit))
            free.append(max(0, int(limit) - int(used) + unused))
    return (min(allowed), min(free)) if allowed else None


def _limits(root: Path, controller: str, files: tuple[str, ...], old_files: tuple[str, ...]) -> Iterator[list[str]]:
    """Yield the words in these files of each control group that this process is in; the old ones are of version 1."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for membership in memberships:
        _, controllers, group = membership.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / (controller if controllers else "")
        own = mounted / group.strip("/")
        # A limit of any group above counts. In a container those above its own may be out of sight.
        for folder in (own, *own.parents):
            if folder.is_relative_to(mounted):
                with suppress(OSError):
                    texts = [(folder / name).read_text().strip() for name in (old_files if controllers else files)]
                    yield " ".join(texts).split()


def _physical_cores(cpus: Iterable[int]) -> int:
    """Return on how many cores these hardware threads are."""
    return len({_siblings(cpu) for cpu in cpus})


def _siblings(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() else None
