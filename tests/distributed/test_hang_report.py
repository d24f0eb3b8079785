"""The report of a hang says which rank is missing, from the answers of the watchdogs."""

import pytest

from lucid.distributed.health.hang_report import Sighting, describe
from lucid.launch.rank_status import RankStatus

HOSTS = ["node1", "node1", "node2", "node2"]
START = "lucid: ranks wait in vain in all_reduce (wait 5) at step 3, all ranks end: "


def waiting(collective="all_reduce", waits=5, step=3, stack=("a.py:1 in wait",)):
    return Sighting(RankStatus(step=step, waits=waits, collective=collective), 600.04, stack)


def outside(step=2, phase="", stack=("b.py:2 in loop",)):
    return Sighting(RankStatus(step=step, waits=4, phase=phase), 601.0, stack)


@pytest.mark.parametrize(
    ("sightings", "finding"),
    [
        (
            {0: waiting(), 1: waiting(), 3: waiting()},
            "rank 2 on node2 does not answer (stopped, gone, or cut off from this one)",
        ),
        ({1: waiting()}, "ranks 0, 2-3 do not answer (stopped, gone, or cut off from this one)"),
        (
            {0: waiting(), 1: outside(), 2: waiting(), 3: waiting()},
            "rank 1 on node1 is at step 2, outside of any collective",
        ),
        (
            {0: outside(phase="saving a checkpoint"), 1: waiting(), 2: waiting(), 3: waiting()},
            "rank 0 on node1 is at step 2, saving a checkpoint, outside of any collective",
        ),
        (
            {0: waiting(), 1: waiting(), 2: waiting("broadcast", waits=4), 3: waiting()},
            "rank 2 on node2 is behind the others, in broadcast (wait 4) at step 3",
        ),
        (
            {0: waiting(), 1: waiting(), 2: waiting("barrier"), 3: waiting()},
            "they are not in the same collective, so the program has taken different ways on them",
        ),
        (
            dict.fromkeys(range(4), waiting()),
            "all are in it, so the network does not carry it, or it takes longer than the limit",
        ),
    ],
)
def test_the_first_line_says_which_rank_is_missing(sightings, finding):
    assert describe(sightings, HOSTS).splitlines()[0] == START + finding


def test_every_rank_shows_its_status_and_stack_and_equal_ranks_share_lines():
    sightings = {0: waiting(), 1: outside(), 2: waiting(), 3: waiting()}
    assert describe(sightings, HOSTS).splitlines()[1:] == [
        "ranks 0, 2-3: in all_reduce (wait 5) at step 3, for 600.0 s",
        "ranks 0, 2-3:   a.py:1 in wait",
        "rank 1: outside of any collective at step 2, for 601.0 s",
        "rank 1:   b.py:2 in loop",
    ]
