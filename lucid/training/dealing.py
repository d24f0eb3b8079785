"""Deals the rows of each global batch to the ranks, so that no rank waits long for a busier one.

A row's masks, dropout and weight in the loss follow from its place in the global batch. So any rank may compute any
row, and the losses are the same up to rounding. Every rank deals all rows by itself, without a message: the deal is a
function of the seed, of the samples that the run has consumed, and of the number of ranks.
"""

from heapq import heappop, heapreplace

import numpy as np

from lucid.backend import Array
from lucid.data import Mixture
from lucid.models.bert.flops import forward_flops_each
from lucid.training.config import RunConfig


class Dealer:
    """Deals the global batches of a run to `size` ranks, by the FLOPs of each row, unless they are dealt by place."""

    def __init__(self, config: RunConfig, mixture: Mixture, size: int) -> None:
        self._config, self._mixture, self._size = config, mixture, size
        self._by_place = dealt_by_place(config, size)

    def rows(self, rank: int, consumed: int) -> Array:
        """Return the rows of a rank, rising, int64: of the global batch that begins after `consumed` samples."""
        return np.flatnonzero(self._ranks(consumed) == rank)

    def places(self, consumed: int) -> list[tuple[int, int]]:
        """Return the rank of each row of a global batch, and in which of the rank's micro-batches it is, from 0."""
        ranks, at_once = self._ranks(consumed), self._config.samples_at_once(self._size)
        before = [0] * self._size
        places = []
        for rank in ranks.tolist():
            places.append((rank, before[rank] // at_once))
            before[rank] += 1
        return places

    def _ranks(self, consumed: int) -> Array:
        batch = self._config.train.global_batch
        if self._by_place:
            return np.arange(batch) * self._size // batch
        lengths = self._mixture.expected_lengths(consumed + np.arange(batch))
        masked = np.rint(self._config.masking_rate.mean * lengths).astype(np.int64)
        costs = forward_flops_each(self._config.model, lengths, masked)
        return deal(costs, self._size, self._config.local_batch(self._size))


def dealt_by_place(config: RunConfig, size: int) -> bool:
    """Return whether each of `size` ranks gets adjacent rows, however long they are.

    One rank has no choice. The exact reduction sums micro-batches of adjacent rows. And packed rows are about equally
    long; to know their lengths, each rank would have to pack the sequences of all ranks.
    """
    return size == 1 or config.train.reduction == "exact" or config.data.packing


def deal(costs: Array, size: int, most: int) -> Array:
    """Return the rank of each row, int64 [B], given its cost: int64 [B].

    From the costliest row on, each goes to the least loaded of `size` ranks that has fewer than `most` rows (Graham,
    "Bounds on multiprocessing timing anomalies", 1969). The first row and the first rank come first in a tie. If there
    are as many rows as ranks or more, each rank has at least one.
    """
    loads = [(0, rank, 0) for rank in range(size)]
    order = np.argsort(-costs, kind="stable")
    dealt = []
    for cost in costs[order].tolist():
        load, rank, rows = loads[0]
        dealt.append(rank)
        if rows + 1 < most:
            heapreplace(loads, (load + cost, rank, rows + 1))
        else:
            heappop(loads)
    ranks = np.empty(len(costs), np.int64)
    ranks[order] = dealt
    return ranks
