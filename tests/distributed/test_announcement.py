"""What launchers announce, and the refusal of processes that the wrong launcher started."""

import os
import subprocess
import sys

import pytest

from lucid.distributed import connect, is_first_rank
from lucid.distributed.communicators import announcement
from lucid.distributed.communicators.announcement import announced, check_world_size, is_alone
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.distributed.connection import join
from lucid.errors import LaunchError

PREFIXES = ("PMI", "OMPI_", "SLURM_", "MPI_LOCAL")
SRUN_STEP = {"SLURM_STEP_ID": 0, "SLURM_PROCID": 1, "SLURM_STEP_NUM_TASKS": 2, "SLURM_LOCALID": 0}


@pytest.fixture
def environment(monkeypatch):
    """A function that replaces the launchers' variables in the environment."""
    for name in [name for name in os.environ if name.startswith(PREFIXES)]:
        monkeypatch.delenv(name)

    def say(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return say


def test_nothing_is_announced_to_a_process_started_by_itself(environment):
    assert announced() is None
    assert is_alone()
    assert is_first_rank()
    check_world_size(1)


@pytest.mark.parametrize(
    "variables",
    [
        {"PMI_RANK": 2, "PMI_SIZE": 4, "MPI_LOCALRANKID": 1},
        {"OMPI_COMM_WORLD_RANK": 2, "OMPI_COMM_WORLD_SIZE": 4, "OMPI_COMM_WORLD_LOCAL_RANK": 1, "PMIX_RANK": 2},
        {"SLURM_STEP_ID": 0, "SLURM_PROCID": 2, "SLURM_STEP_NUM_TASKS": 4, "SLURM_LOCALID": 1},
        # srun --mpi=pmi2
        {"PMI_RANK": 2, "PMI_SIZE": 4, "SLURM_LOCALID": 1, "SLURM_PROCID": 2},
        # srun --mpi=pmix
        {"PMIX_RANK": 2, "SLURM_STEP_ID": 0, "SLURM_PROCID": 2, "SLURM_STEP_NUM_TASKS": 4, "SLURM_LOCALID": 1},
        # mpiexec inside an allocation starts one process per node with srun, and those start the ranks
        {"PMI_RANK": 2, "PMI_SIZE": 4, "MPI_LOCALRANKID": 1, **SRUN_STEP},
    ],
    ids=["hydra", "openmpi", "srun-none", "srun-pmi2", "srun-pmix", "mpiexec-in-slurm"],
)
def test_every_launcher_is_understood(environment, variables):
    environment(**variables)
    announcement = announced()
    assert (announcement.rank, announcement.size, announcement.local_rank) == (2, 4, 1)
    assert not is_first_rank()


def test_a_batch_script_is_not_a_launch(environment):
    environment(SLURM_JOB_ID=7, SLURM_PROCID=0, SLURM_NTASKS=4, SLURM_LOCALID=0)
    assert announced() is None


def test_a_launcher_need_not_announce_the_size(environment):
    environment(PMIX_RANK=0)
    assert announced().size is None
    assert is_first_rank()
    check_world_size(4)


# A shell of srun or salloc, whose launcher no longer listens.
LEFT_OVER = {"PMI_RANK": 0, "PMI_SIZE": 1, "PMI_FD": 77}
ONE_TASK = {"SLURM_STEP_ID": 0, "SLURM_PROCID": 0, "SLURM_STEP_NUM_TASKS": 1, "SLURM_LOCALID": 0}


@pytest.mark.parametrize(
    "variables",
    [
        LEFT_OVER,
        ONE_TASK,
        {**LEFT_OVER, **ONE_TASK},
        {**ONE_TASK, "PMIX_RANK": 0, "PMIX_NAMESPACE": "slurm.pmix.7.0"},
        {"OMPI_COMM_WORLD_RANK": 0, "OMPI_COMM_WORLD_SIZE": 1, "PMIX_RANK": 0, "PMIX_NAMESPACE": "prterun-a-1@1"},
    ],
    ids=["pmi", "srun", "pmi-srun", "pmix-srun", "openmpi"],
)
def test_an_announced_world_of_one_is_alone_and_starts_no_mpi(environment, variables):
    environment(**variables)
    assert is_alone()
    communicator = join()
    assert (communicator.size, type(communicator)) == (1, SingleCommunicator)


@pytest.mark.parametrize(
    "variables",
    [
        {"PMIX_RANK": 0},
        # srun -n 4 in a shell of a step of one task, whose variables it does not replace
        {**LEFT_OVER, **ONE_TASK, "SLURM_STEP_NUM_TASKS": 4},
        # a launcher of PMIx in such a shell
        {**ONE_TASK, "PMIX_RANK": 0, "PMIX_NAMESPACE": "prterun-a-1@1"},
    ],
    ids=["unknown-size", "left-over-pmi", "left-over-srun"],
)
def test_mpi_says_how_many_processes_there_are_where_launchers_do_not_agree(environment, variables):
    environment(**variables)
    assert not is_alone()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_world_of_another_size_is_refused_with_advice_by_the_first_rank_first(environment, monkeypatch, rank):
    waits = []
    monkeypatch.setattr(announcement.time, "sleep", waits.append)
    environment(PMI_RANK=rank, PMI_SIZE=4)
    with pytest.raises(LaunchError, match=r"started 4 processes.* sees 1.*mpiexec.*srun --mpi=pmi2"):
        check_world_size(1)
    assert [wait > 0 for wait in waits] == [True] * rank


def test_singletons_are_refused(environment):
    # As under the mpiexec of another MPI: the size is announced, but this MPI's own channel is not there.
    environment(OMPI_COMM_WORLD_RANK=0, OMPI_COMM_WORLD_SIZE=4)
    program = "from lucid.distributed import connect; connect()"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert finished.returncode == 1
    assert "LaunchError: the launcher (Open MPI) started 4 processes" in finished.stderr


def test_single_is_refused_where_a_launcher_started_several(environment):
    environment(PMI_RANK=1, PMI_SIZE=4)
    with pytest.raises(LaunchError, match=r"'single' is for one process.*started 4"):
        connect("single")
