"""Who audits whom, and who of those that disagree is wrong."""

from collections import Counter

import numpy as np
import pytest

from lucid.distributed.health.audits import audited_ranks, find_fault

HOSTS = [["a"] * 2, ["a"] * 5, ["a", "b"], ["a", "a", "b", "b"], ["a", "b", "a", "b", "c", "c"], ["a", "a", "b"]]


@pytest.mark.parametrize("hosts", HOSTS, ids=" ".join)
def test_each_rank_is_audited_by_another_one_on_another_host_where_possible(hosts):
    for number in range(20):
        audited = audited_ranks(hosts, number)
        assert sorted(audited) == list(range(len(hosts)))
        assert all(rank != other for rank, other in enumerate(audited))
        if 2 * max(Counter(hosts).values()) <= len(hosts):
            assert all(hosts[rank] != hosts[other] for rank, other in enumerate(audited))


@pytest.mark.parametrize("hosts", HOSTS, ids=" ".join)
def test_soon_each_rank_is_audited_from_another_host_if_there_is_one(hosts):
    pairs = [(rank, other) for number in range(len(hosts)) for rank, other in enumerate(audited_ranks(hosts, number))]
    from_elsewhere = {other for rank, other in pairs if hosts[rank] != hosts[other]}
    assert from_elsewhere == (set(range(len(hosts))) if len(set(hosts)) > 1 else set())


NAMES = ["first", "second"]


def checksums(of, first=0, second=0):
    """Checksums of rank `of`, with these numbers added if they are wrong."""
    return np.array([100 + of + first, 200 + of + second])


@pytest.mark.mpi(min_size=2)
def test_ranks_that_agree_have_no_fault(group):
    hosts = [f"host{rank}" for rank in range(group.size)]
    for number in range(3):
        assert find_fault(group, hosts, number, NAMES, checksums) is None


@pytest.mark.mpi(min_size=2)
def test_a_rank_that_is_always_wrong_is_named_if_a_third_can_decide(group):
    hosts = [f"host{rank}" for rank in range(group.size)]
    wrong = group.size - 1

    def found(of):
        return checksums(of, second=group.rank == wrong)

    fault = find_fault(group, hosts, 0, NAMES, found)
    assert fault.names == ["second"]
    assert sorted(fault.ranks) == ([wrong] if group.size > 2 else [0, 1])
    assert f"rank {wrong} on host{wrong}" in str(fault)


@pytest.mark.mpi(min_size=2)
def test_a_rank_that_is_wrong_once_is_named(group):
    hosts = ["host"] * group.size
    calls = []

    def found(of):
        calls.append(of)
        return checksums(of, first=group.rank == 1 and len(calls) == 2)

    fault = find_fault(group, hosts, 0, NAMES, found)
    assert (fault.ranks, fault.names) == ([1], ["first"])
    assert str(fault).startswith("rank 1 on host computed different gradients")
