"""The report of a hang says which rank is missing, from the answers of the watchdogs."""

import pytest

from lucid.distributed.communicators.communicator import LONGEST_MESSAGE
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.distributed.communicators.status_writer import StatusWriter
from lucid.distributed.health import watchdog
from lucid.distributed.health.hang_report import Sighting, describe, history
from lucid.launch.rank_status import PAGE_BYTES, WAITS_KEPT, RankStatus, Wait, write_header

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
            "rank 2 on node2 is behind the others, in broadcast (wait 4) at step 3; "
            "the others are in all_reduce (wait 5) at step 3",
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


def after_many_waits(count):
    """A rank that waits for the second of three buckets, after so many other waits."""
    status = StatusWriter(rank=1, ranks=2)
    for number in range(count):
        status.step = number // 3
        with status.of_bucket(number % 3), status.waiting("reduce_scatter", 1000 * number):
            pass
    with status.of_bucket(1), status.waiting("all_reduce", 25_000_000):
        return Sighting(status.current, 2.0, ("a.py:1 in wait",), tuple(status.waits))


def test_a_rank_keeps_its_newest_waits_in_their_order():
    waits = after_many_waits(1000).waits_so_far
    assert [wait.number for wait in waits] == list(range(1002 - WAITS_KEPT, 1002))
    assert all(wait.began <= wait.ended for wait in waits[:-1])
    assert waits[-2]._replace(began=0.0, ended=0.0) == Wait(1000, 333, 999_000, 0, collective="reduce_scatter")
    assert (waits[-1].ended, str(waits[-1])) == (0.0, "all_reduce of 25.0 MB (wait 1001, bucket 1)")


def test_the_message_has_the_waits_before_and_where_the_others_are():
    late = after_many_waits(10)
    ahead = Sighting(RankStatus(0, 2, step=3, waits=12, collective="all_reduce"), 2.0, (), (Wait(12),))
    first, *lines = describe({0: ahead, 1: late}, HOSTS[:2]).splitlines()
    assert "rank 1 on node1 is behind the others, in all_reduce of 25.0 MB (wait 11, bucket 1) at step 3; " in first
    assert first.endswith("the others are in all_reduce (wait 12) at step 3")
    assert (
        "rank 1: before that in reduce_scatter (wait 8, bucket 1), reduce_scatter (wait 9, bucket 2), "
        "reduce_scatter (wait 10, bucket 0)" in lines
    )


def test_a_rank_outside_of_collectives_has_come_from_one():
    status = StatusWriter(rank=1, ranks=2)
    with status.waiting("barrier", 0):
        pass
    outside = Sighting(status.current, 2.0, (), tuple(status.waits))
    first, *_ = describe({0: waiting(), 1: outside}, HOSTS[:2]).splitlines()
    assert first.endswith("rank 1 on node1 is before the first step, outside of any collective, after barrier (wait 1)")


def test_a_rank_that_is_known_from_its_page_alone_may_have_been_there_for_an_unknown_time(tmp_path):
    page = bytearray(PAGE_BYTES)
    write_header(page, rank=1, ranks=2, step=-1, phase="", warm=False)
    (tmp_path / "page").write_bytes(page)
    found = pages_of(ranks=2, page=str(tmp_path / "page"))
    assert describe({0: waiting()}, HOSTS[:2], found).splitlines()[-1] == (
        "rank 1: outside of any collective before the first step"
    )


def pages_of(ranks, page):
    """What the watchdog of the first rank reads of ranks that have not answered it."""
    places = [watchdog._Place("here", page) for _ in range(ranks)]
    watch = watchdog._Watch(SingleCommunicator(), None, 60.0, places, None)
    return watch._read_pages({0: waiting()})


def test_the_table_has_all_kept_waits_of_all_ranks_that_answer():
    lines = history({0: waiting(), 1: after_many_waits(300)}, HOSTS).splitlines()
    assert lines[0] == "rank 0 on node1: in all_reduce (wait 5) at step 3"
    assert lines[3] == "rank 1 on node1: in all_reduce of 25.0 MB (wait 301, bucket 1) at step 99"
    assert len(lines) == 3 + 2 + WAITS_KEPT
    assert lines[-2].split()[:4] == ["300", "99", "2", "299000"]
    assert lines[-1].split() == ["301", "99", "1", "25000000", "2.000000", "is", "in", "it", "all_reduce"]


def test_all_kept_waits_of_a_rank_fit_into_a_message_with_a_stack():
    sighting = after_many_waits(10_000)
    message = watchdog._encode(sighting)
    assert len(message) <= LONGEST_MESSAGE
    assert watchdog._decode(message) == sighting


def test_what_does_not_fit_into_a_message_is_left_out_the_oldest_waits_first(monkeypatch):
    sighting = after_many_waits(300)
    monkeypatch.setattr(watchdog, "LONGEST_MESSAGE", 1500)
    found = watchdog._decode(watchdog._encode(sighting))
    assert (found.status, found.stack) == (sighting.status, sighting.stack)
    assert found.waits_so_far == sighting.waits_so_far[-len(found.waits_so_far) :]
    assert 0 < len(found.waits_so_far) < WAITS_KEPT
