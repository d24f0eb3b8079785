"""The table of ranks: ranks with equal locations share a row, however many they are."""

import os
import platform

import pytest

from lucid.distributed import RankLocation, locate_ranks
from lucid.distributed.locations import LocationRow, location_rows, ranges


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([5], "5"),
        ([3, 1, 2, 0], "0-3"),
        ([0, 1, 4, 6, 7], "0-1,4,6-7"),
        (range(0, 100, 10), "0,10,20,...,90"),
    ],
)
def test_numbers_are_written_as_ranges(numbers, text):
    assert ranges(numbers) == text


def test_every_rank_learns_the_locations_of_all(group):
    found = locate_ranks(group, threads=group.rank + 1)
    assert [location.threads for location in found] == list(range(1, group.size + 1))
    assert {location.host for location in found} == {platform.node()}
    assert found[group.rank].cpus == tuple(sorted(os.sched_getaffinity(0)))


def on(host, cpus, threads=1, device="cpu", gpu=""):
    return RankLocation(host, tuple(cpus), len(tuple(cpus)), threads, device, gpu)


def test_one_rank_is_one_row():
    assert location_rows([on("a", range(4), threads=4)]) == [LocationRow("0", "a", "4 (0-3)", "4", "cpu")]


def test_a_thousand_ranks_with_equal_locations_are_one_row():
    there = [on(f"node{rank // 10}", [rank % 10]) for rank in range(1000)]
    assert location_rows(there) == [
        LocationRow("0-999", "node0, node1, node2, ... node99 (100)", "1 each (0-9)", "1", "cpu")
    ]


def test_ranks_dealt_out_over_the_hosts_are_one_row_too():
    there = [on(f"node{rank % 2}", [rank // 2]) for rank in range(8)]
    assert location_rows(there) == [LocationRow("0-7", "node0, node1", "1 each (0-3)", "1", "cpu")]


def test_ranks_without_cores_of_their_own_share_them():
    assert location_rows([on("a", range(2)), on("a", range(2))]) == [
        LocationRow("0-1", "a", "2 shared (0-1)", "1", "cpu")
    ]


def test_hosts_that_differ_are_rows_of_their_own():
    there = [on("a", [0]), on("a", [1]), on("b", [0, 1], threads=2), on("c", [0]), on("c", [1])]
    assert location_rows(there) == [
        LocationRow("0-1,3-4", "a, c", "1 each (0-1)", "1", "cpu"),
        LocationRow("2", "b", "2 (0-1)", "2", "cpu"),
    ]


def test_gpus_are_counted_by_host():
    there = [on(host, [core], device="NVIDIA H200", gpu=f"0{core}:00.0") for host in "ab" for core in range(2)]
    assert location_rows(there) == [LocationRow("0-3", "a, b", "1 each (0-1)", "1", "2 x NVIDIA H200")]


def test_a_gpu_that_ranks_share_is_counted_once():
    there = [on("a", [core], device="NVIDIA H200", gpu="01:00.0") for core in range(2)]
    assert location_rows(there)[0].device == "1 x NVIDIA H200 shared"
