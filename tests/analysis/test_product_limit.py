"""The limit that MFU compares with: which ranks measure it."""

import pytest

from lucid.analysis.product_limit import has_cores
from lucid.distributed import RankLocation

SHARED, OWN = [(0, 1, 2, 3)] * 4, [(0,), (1,), (2,), (3,)]


def locations(host, masks, threads):
    return [RankLocation(host, mask, len(mask), threads, "cpu") for mask in masks]


@pytest.mark.parametrize(
    ("masks", "threads", "count"),
    [
        (SHARED, 1, 4),
        (OWN, 1, 4),
        (SHARED, 2, 2),
        (SHARED, 3, 1),
        (SHARED, 8, 1),
        (SHARED * 2, 1, 4),
        (OWN, 2, 2),
    ],
)
def test_as_many_ranks_of_a_host_measure_as_have_cores(masks, threads, count):
    ranks = locations("a", masks, threads) + locations("b", masks, threads)
    counted = [rank for rank in range(len(ranks)) if has_cores(ranks, rank)]
    assert counted == [*range(count), *range(len(masks), len(masks) + count)]
