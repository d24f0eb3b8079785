"""Where a rank is can be read by another thread, and by the parent process when the rank is gone."""

import os
import subprocess
import sys

import numpy as np

from lucid.distributed.communicators.rank_status import Whereabouts
from lucid.launch.rank_status import PAGE_BYTES, PAGE_VARIABLE, RankStatus


def test_a_fresh_page_is_of_a_process_that_has_not_found_the_others():
    assert RankStatus.read(bytes(PAGE_BYTES)) == RankStatus()


def test_the_place_is_the_step_and_the_collective_that_is_waited_in():
    whereabouts = Whereabouts(rank=3, ranks=8)
    assert str(whereabouts.place()) == "before the first step"
    whereabouts.step = 12
    assert str(whereabouts.place()) == "at step 12"
    with whereabouts.waiting("all_reduce", 25_000_000):
        place = whereabouts.place()
        assert str(place) == "in all_reduce of 25.0 MB (wait 1) at step 12"
        assert place.since > 0
    with whereabouts.waiting("barrier", 0):
        assert str(whereabouts.place()) == "in barrier (wait 2) at step 12"
    assert whereabouts.place() == RankStatus(rank=3, ranks=8, step=12, waits=2)


def test_a_long_phase_is_named_until_it_ends():
    whereabouts = Whereabouts(rank=0, ranks=1)
    whereabouts.step = 40
    with whereabouts.phase("evaluating"):
        with whereabouts.phase("saving a checkpoint"):
            assert str(whereabouts.place()) == "at step 40, saving a checkpoint"
        with whereabouts.waiting("barrier", 0):
            assert str(whereabouts.place()) == "in barrier (wait 1) at step 40, evaluating"
    assert str(whereabouts.place()) == "at step 40"


def test_a_rank_is_warm_from_its_second_step_on():
    whereabouts = Whereabouts(rank=0, ranks=1)
    assert not whereabouts.place().warm
    whereabouts.step = 300
    assert not whereabouts.place().warm
    whereabouts.step = 301
    assert whereabouts.place().warm


def test_every_wait_of_a_communicator_is_counted(group):
    before = group.whereabouts.place().waits
    group.all_reduce(np.zeros(3)).wait()
    group.barrier()
    place = group.whereabouts.place()
    assert place.collective == ""
    assert place.waits - before in (0, 2)  # alone, nothing waits
    assert (place.rank, place.ranks) == (group.rank, group.size)


def test_a_parent_reads_in_its_page_where_a_killed_process_was():
    program = (
        "import os, signal; from lucid.distributed import connect; communicator = connect(); "
        "communicator.whereabouts.step = 7; os.kill(os.getpid(), signal.SIGKILL)"
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
    os.close(page)
