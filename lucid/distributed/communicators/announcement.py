"""What the launcher announces to this process in the environment: its rank, before MPI is initialised.

The announcement decides whether a process uses MPI at all, and which process speaks to the user before MPI is
initialised. It also shows whether the launcher belongs to the MPI library that is loaded here. If it does not, each
process would silently train alone.
"""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lucid.errors import LaunchError


@dataclass(frozen=True)
class Announcement:
    """A launcher's announcement. `size` and `local_rank` are None if it does not give them."""

    launcher: str
    rank: int
    size: int | None
    local_rank: int | None


@dataclass(frozen=True)
class _Launcher:
    """The environment variables that a launcher sets."""

    name: str
    rank: str
    size: str | None
    local_ranks: tuple[str, ...] = ()
    # A variable that must be set too, if the others do not prove a launch.
    proof: str | None = None


# Inner launchers come before outer ones: mpiexec inside a SLURM step inherits the variables of the step. SLURM sets a
# rank in the batch script too, but only a step has a step number.
_LAUNCHERS = (
    _Launcher("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("OMPI_COMM_WORLD_LOCAL_RANK",)),
    _Launcher("PMI", "PMI_RANK", "PMI_SIZE", ("MPI_LOCALRANKID", "SLURM_LOCALID")),
    _Launcher("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("SLURM_LOCALID",), proof="SLURM_STEP_ID"),
    _Launcher("PMIx", "PMIX_RANK", None),
)


_SECONDS_FOR_THE_FIRST_RANK = 10


def announced() -> Announcement | None:
    """Return the launcher's announcement, or None if no launcher started this process."""
    return next(_announcements(), None)


def _announcements() -> Iterator[Announcement]:
    """Yield the announcements of all launchers, inner ones first."""
    for launcher in _LAUNCHERS:
        rank = _number(launcher.rank)
        if rank is None or (launcher.proof and launcher.proof not in os.environ):
            continue
        local_ranks = [number for number in map(_number, launcher.local_ranks) if number is not None]
        yield Announcement(
            launcher=launcher.name,
            rank=rank,
            size=_number(launcher.size) if launcher.size else None,
            local_rank=local_ranks[0] if local_ranks else None,
        )


def is_alone() -> bool:
    """Return whether this process is the only one: no launcher started it, or every one started a single process.

    In a shell of salloc or `srun --pty bash` the variables name a connection to the launcher that is gone, and MPI
    might not start. If two launchers announce different sizes, the variables of one are a leftover, and MPI has to say
    how many processes there are.
    """
    sizes = {announcement.launcher: announcement.size for announcement in _announcements()}
    # Both set PMIx's rank too, which comes without a size.
    of_srun = "srun" in sizes and os.environ.get("PMIX_NAMESPACE", "").startswith("slurm.")
    if "Open MPI" in sizes or of_srun:
        sizes.pop("PMIx", None)
    return set(sizes.values()) <= {1}


def is_first_rank() -> bool:
    """Return whether this process is the one that speaks to the user. This does not use MPI."""
    announcement = announced()
    return announcement is None or announcement.rank == 0


def check_started_once(command: str) -> None:
    """Raise `LaunchError` if a launcher started several processes of this lucid `command`, which starts its own."""
    launch = announced()
    if launch is not None and (launch.size or 1) > 1:
        raise LaunchError(
            f"the launcher ({launch.launcher}) started {launch.size} processes, but lucid {command} starts its own: "
            f"run it once, with --processes {launch.size}, and without mpiexec (under SLURM with srun -n 1)"
        )


def check_world_size(world_size: int) -> None:
    """Raise `LaunchError` unless MPI's world has the size that the launcher announced.

    The first rank raises it first, because it alone speaks, and srun kills all ranks as soon as one has failed.
    """
    announcement = announced()
    if announcement is None or announcement.size in (None, world_size):
        return
    if announcement.rank > 0:
        time.sleep(_SECONDS_FOR_THE_FIRST_RANK)
    raise LaunchError(
        f"the launcher ({announcement.launcher}) started {announcement.size} processes, but MPI sees {world_size}: the "
        f"launcher belongs to another MPI library. {how_to_launch(announcement.size)}"
    )


def how_to_launch(size: int | None) -> str:
    """Return a sentence that says how to start `size` processes with the MPI of this environment."""
    mpiexec = Path(sys.executable).parent / "mpiexec"
    count = "N" if size is None else size
    if mpiexec.exists():
        return f"Use this environment's own launcher, {mpiexec} -n {count} ..., or srun --mpi=pmi2 under SLURM."
    return (
        f"Use the mpiexec of the MPI library that mpi4py loads (`{sys.executable} -m mpi4py --mpi-library` names it), "
        "or under SLURM srun --mpi=pmi2 for MPICH and --mpi=pmix for Open MPI."
    )


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() else None
