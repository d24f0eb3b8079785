"""The status of a rank can be read by another thread, and by the parent process when the rank is gone."""

import os
import subprocess
import sys

import numpy as np

from lucid.distributed.communicators.status_writer import StatusWriter
from lucid.launch.rank_status import PAGE_BYTES, PAGE_VARIABLE, RankStatus, read_page


def test_a_fresh_page_belongs_to_a_process_that_has_not_found_the_others():
    assert RankStatus.read(bytes(PAGE_BYTES)) == RankStatus()


def test_the_status_has_the_step_and_the_collective_that_the_rank_waits_in():
    status = StatusWriter(rank=3, ranks=8)
    assert str(status.current) == "before the first step"
    status.step = 12
    assert str(status.current) == "at step 12"
    with status.waiting("all_reduce", 25_000_000):
        current = status.current
        assert str(current) == "in all_reduce of 25.0 MB (wait 1) at step 12"
        assert current.since > 0
    with status.waiting("barrier", 0):
        assert str(status.current) == "in barrier (wait 2) at step 12"
    assert status.current == RankStatus(rank=3, ranks=8, step=12, waits=2)


def test_the_status_names_a_long_phase_until_it_ends():
    status = StatusWriter(rank=0, ranks=1)
    status.step = 40
    with status.phase("evaluating"):
        with status.phase("saving a checkpoint"):
            assert str(status.current) == "at step 40, saving a checkpoint"
        with status.waiting("barrier", 0):
            assert str(status.current) == "in barrier (wait 1) at step 40, evaluating"
    assert str(status.current) == "at step 40"


def test_a_rank_is_warm_from_its_second_step_on():
    status = StatusWriter(rank=0, ranks=1)
    assert not status.current.warm
    status.step = 300
    assert not status.current.warm
    status.step = 301
    assert status.current.warm


def test_every_wait_of_a_communicator_is_counted(group):
    before = group.status.current.waits
    group.all_reduce(np.zeros(3)).wait()
    group.barrier()
    current = group.status.current
    assert current.collective == ""
    assert current.waits - before in (0, 2)  # alone, nothing waits
    assert (current.rank, current.ranks) == (group.rank, group.size)


def test_a_parent_reads_the_status_of_a_killed_process_from_its_page():
    program = (
        "import os, signal; from lucid.distributed import connect; communicator = connect(); "
        "communicator.status.step = 7; os.kill(os.getpid(), signal.SIGKILL)"
    )
    page = os.memfd_create("page")
    os.ftruncate(page, PAGE_BYTES)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PMI", "OMPI"))}
    subprocess.run(
        [sys.executable, "-c", program],
        env={**variables, PAGE_VARIABLE: f"{os.getpid()}:{page}"},
        pass_fds=[page],
        check=False,
    )
    assert RankStatus.read(os.pread(page, PAGE_BYTES, 0)) == RankStatus(rank=0, ranks=1, step=7)
    # So do other processes of the host, as long as the parent is there.
    assert read_page(f"/proc/{os.getpid()}/fd/{page}") == os.pread(page, PAGE_BYTES, 0)
    os.close(page)
    assert read_page(f"/proc/{os.getpid()}/fd/{page}") is None
