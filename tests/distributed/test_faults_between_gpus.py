"""A failure between GPUs ends all ranks, with a message, although the host does not wait for the GPUs."""

import re

import pytest
from launching import with_emulation
from stand_in.building import why_no_stand_in

from lucid.errors import ExitCode

pytestmark = pytest.mark.skipif(why_no_stand_in() != "", reason=why_no_stand_in())

# Stand-in GPUs, one for each rank.
EMULATED = with_emulation(EMULATED_GPUS="3")

# A connection of rank 1 breaks while no rank waits in a collective.
BROKEN_CONNECTION = """
import os, time
from lucid.backend import zeros
from lucid.distributed import choose, session, watched

with session() as group, watched(group, 60):
    communicator = choose(group, "nccl", device="cuda")
    for step in range(30):
        group.status.step = step
        communicator.all_reduce(zeros(10, "float32", communicator.device)).wait()
    if group.rank == 1:
        os.environ["EMULATED_NCCL_ERROR"] = "6:20"
    time.sleep(30)
"""


def test_a_broken_connection_between_gpus_ends_all_ranks_with_its_message(run_ranks):
    finished = run_ranks(3, "-m", "mpi4py", "-c", BROKEN_CONNECTION, seconds=25, **EMULATED)
    assert finished.returncode == 1, finished.stdout
    assert "rank 1 of 3 failed at step 29, all ranks end:" in finished.stdout
    assert "NCCL lost the connection to other GPUs: NCCL_ERROR_REMOTE_ERROR" in finished.stdout
    assert "Traceback" not in finished.stdout


# Rank 1 does not come to a collective, and the others wait for its result.
HUNG_RANK = """
import time
from lucid.distributed import choose, session, wait_for_device, watched

class Event:
    def synchronize(self):
        time.sleep(60)

with session() as group, watched(group, 1):
    communicator = choose(group, "nccl", device="cuda")
    for step in range(3):
        group.status.step = step
    if group.rank == 1:
        time.sleep(60)
    wait_for_device(communicator, Event())
"""


def test_a_rank_that_is_missing_shows_where_the_others_wait_for_their_gpus(run_ranks):
    finished = run_ranks(3, "-m", "mpi4py", "-c", HUNG_RANK, seconds=25, **EMULATED)
    assert finished.returncode == ExitCode.HUNG, finished.stdout
    assert re.search(r"ranks wait in vain in wait for the GPU \(wait \d+\) at step 2, all ranks end: ", finished.stdout)
    assert re.search(r"rank 1 on \S+ is at step 2, outside of any collective", finished.stdout)
