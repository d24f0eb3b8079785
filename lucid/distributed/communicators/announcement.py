"""Who and where this process is, by the word of its launcher and operating system, before MPI is initialised.

Launchers tell each process its rank in the environment. That word serves three ends: to know whether to use MPI at
all, to let one process alone speak to the user while MPI is not up, and to notice when the launcher belongs to another
MPI than the one loaded here; each process would then take itself for a world of one, silently.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from lucid.errors import LaunchError


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


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() else None
