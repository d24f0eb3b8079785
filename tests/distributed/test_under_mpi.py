"""Runs the tests marked `mpi`, of all folders, on 2, 3 and 4 ranks; and those of groups on emulated GPUs as well."""

import os
import re
from pathlib import Path

import pytest

from lucid.errors import ExitCode

TESTS = Path(__file__).parents[1]
SECONDS = 270
# Four GPUs that are not there (`tests/emulated`), and no kernels to compile for them: others test these.
EMULATED = {
    "LUCID_KERNELS": "reference",
    "PYTHONPATH": os.pathsep.join(filter(None, (str(TESTS / "emulated"), os.environ.get("PYTHONPATH")))),
    "EMULATED_GPUS": "4",
}


@pytest.fixture
def run_tests(run_ranks, tmp_path):
    """A function that runs the multi-rank tests in a folder, each on all ranks, and asserts that they pass."""

    def run(ranks, folder, *options, **environment):
        finished = run_ranks(
            ranks,
            *("-m", "mpi4py", "-m", "pytest", "-x", "--only-mpi", "-p", "no:cacheprovider", *options),
            # A rank that hangs shows where, and ends; so all end.
            *("-o", "faulthandler_timeout=60", "-o", "faulthandler_exit_on_timeout=true"),
            *("--passed-into", str(tmp_path), str(folder)),
            seconds=SECONDS,
            **environment,
        )

        assert finished.returncode == 0, finished.stdout
        passed = {path.name: path.read_text() for path in tmp_path.iterdir()}
        assert set(passed) == {str(rank) for rank in range(ranks)}, finished.stdout
        assert all(passed.values()), f"a rank ran no test:\n{finished.stdout}"
        assert len(set(passed.values())) == 1, f"the ranks ran different tests:\n{finished.stdout}"

    return run


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_multi_rank_tests_pass(run_tests, ranks):
    run_tests(ranks, TESTS)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_tests_of_groups_pass_on_gpus(run_tests, ranks):
    run_tests(ranks, TESTS / "distributed", "--on-gpus", **EMULATED)


# Rank 1 learns that a connection has broken, while all go on with collectives that nobody waits for.
BROKEN_CONNECTION = """
import os, time
from lucid.backend import zeros
from lucid.distributed import choose, session, watched

with session() as group, watched(group, 60):
    communicator = choose(group, "nccl", device="cuda")
    if group.rank == 1:
        os.environ["EMULATED_NCCL_ERROR"] = "6:20"
    for step in range(30):
        group.whereabouts.step = step
        communicator.all_reduce(zeros(10, "float32", communicator.device)).wait()
    time.sleep(30)
"""


def test_a_broken_connection_between_gpus_ends_all_ranks_with_its_message(run_ranks):
    finished = run_ranks(3, "-m", "mpi4py", "-c", BROKEN_CONNECTION, seconds=25, **EMULATED)
    assert finished.returncode == 1, finished.stdout
    assert "rank 1 of 3 failed at step 29, all ranks end:" in finished.stdout
    assert "NCCL lost the connection to other GPUs: NCCL_ERROR_REMOTE_ERROR" in finished.stdout
    assert "Traceback" not in finished.stdout


# Rank 1 does not come to a collective, for the result of which the others wait.
HUNG_RANK = """
import time
from lucid.distributed import choose, session, wait_for_device, watched

class Event:
    def synchronize(self):
        time.sleep(60)

with session() as group, watched(group, 1):
    communicator = choose(group, "nccl", device="cuda")
    for step in range(3):
        group.whereabouts.step = step
    if group.rank == 1:
        time.sleep(60)
    wait_for_device(communicator, Event())
"""


def test_a_rank_that_is_missing_shows_where_the_others_wait_for_their_gpus(run_ranks):
    finished = run_ranks(3, "-m", "mpi4py", "-c", HUNG_RANK, seconds=25, **EMULATED)
    assert finished.returncode == ExitCode.HUNG, finished.stdout
    assert re.search(r"ranks wait in vain in wait for the GPU \(wait \d+\) at step 2, all ranks end: ", finished.stdout)
    assert re.search(r"rank 1 on \S+ is at step 2, outside of any collective", finished.stdout)
