"""Deals the rows of each global batch to the ranks, so that no rank waits long for a busier one.

A row's masks, dropout and weight in the loss follow from its place in the global batch. So any rank may compute any
row, and the losses are the same up to rounding. Every rank deals all rows by itself, without a message: the deal is a
function of the seed, of the samples that the run has consumed, and of the number of ranks. With `train.balance: speed`
it is also one of the speeds of the ranks, which all ranks learn together with each line of the log.
"""

import math
from collections.abc import Sequence
from heapq import heapify, heappop, heapreplace

import numpy as np

from lucid.backend import Array
from lucid.data import Mixture
from lucid.data.loader import batches_ahead
from lucid.errors import ConfigError
from lucid.models.bert.flops import forward_flops_each
from lucid.training.config import RunConfig

# Measured speeds count half if they are those of so many steps, and more if there were more steps.
_STEPS_FOR_HALF = 10


class Dealer:
    """Deals the global batches of a run to `size` ranks, by the FLOPs of each row, unless they are dealt by place."""

    def __init__(self, config: RunConfig, mixture: Mixture, size: int) -> None:
        self._config, self._mixture, self._size = config, mixture, size
        self._shared = config.shared_by(size)
        self._by_place = dealt_by_place(config, size)
        # The relative speeds of the ranks, and the step from which on they count. Replaced whole, as threads read it.
        self._speeds = [(0, [1.0] * size)]

    def rows(self, rank: int, step: int, consumed: int) -> Array:
        """Return the rows of a rank, rising, int64: of the global batch of `step`, after `consumed` samples."""
        return np.flatnonzero(self._ranks(step, consumed) == rank)

    def places(self, step: int, consumed: int) -> list[tuple[int, int]]:
        """Return the rank of each row of a global batch, and in which of the rank's micro-batches it is, from 0.

        Raises `ConfigError` with `train.balance: speed`.
        """
        if self._config.train.balance == "speed":
            raise ConfigError(
                "the run has train.balance=speed: its ranks had rows by the speeds that were measured while it "
                "trained, and nothing notes them; leave --rank-of out"
            )
        ranks, micro_batch = self._ranks(step, consumed), self._shared.largest_micro_batch
        before = [0] * self._size
        places = []
        for rank in ranks.tolist():
            places.append((rank, before[rank] // micro_batch))
            before[rank] += 1
        return places

    def learn(self, step: int, speeds: Array, steps: int) -> None:
        """Take the speeds of the ranks in the last `steps` steps before `step`: float64 [size], on all ranks the same.

        They count from the first step on whose batch no rank can have begun when it calls this. Hosts of different
        kinds have to find the same bits: so this uses only operations that round correctly everywhere.
        """
        if self._config.train.balance != "speed":
            return
        weight, mean = steps / (steps + _STEPS_FOR_HALF), math.fsum(speeds.tolist()) / self._size
        now = [old + weight * (new / mean - old) for old, new in zip(self._speeds[-1][1], speeds.tolist(), strict=True)]
        # The batch of `step` is there, and as many as the loader makes ahead have begun.
        data = self._config.data
        first = step + batches_ahead(data.workers, data.prefetch) + 1
        earlier = [known for known in self._speeds if known[0] <= step]
        later = self._speeds[len(earlier) :]
        self._speeds = [earlier[-1], *later, (first, now)]

    def _ranks(self, step: int, consumed: int) -> Array:
        batch, most = self._config.train.global_batch, self._shared.most_samples
        speeds = next(speeds for first, speeds in reversed(self._speeds) if first <= step)
        if self._by_place:
            # All rows cost the same: 2, because `deal` adds half of it to each rank, in integers.
            return np.sort(deal(np.full(batch, 2), speeds, most))
        lengths = self._mixture.expected_lengths(consumed + np.arange(batch))
        masked = np.rint(self._config.masking_rate.mean * lengths).astype(np.int64)
        return deal(forward_flops_each(self._config.model, lengths, masked), speeds, most)


def dealt_by_place(config: RunConfig, size: int) -> bool:
    """Return whether each of `size` ranks gets adjacent rows, however long they are.

    One rank has no choice. The exact reduction sums micro-batches of adjacent rows. And packed rows are about equally
    long; to know their lengths, each rank would have to pack the sequences of all ranks.
    """
    return size == 1 or config.train.reduction == "exact" or config.data.packing


def deal(costs: Array, speeds: Sequence[float], most: int) -> Array:
    """Return the rank of each row, int64 [B], given its cost (int64 [B]) and the speed of each of R ranks.

    From the costliest row on, each goes to the rank that will have done its rows first (Graham, "Bounds on
    multiprocessing timing anomalies", 1969) and has fewer than `most`. Half a mean row is added to the rows of each, so
    that a slow rank gets its first row when half of it is due. The first row and the first rank come first in a tie. If
    there are as many rows as ranks or more, each rank has at least one.
    """
    half = int(costs.sum()) // (2 * len(costs))
    ranks_by_end = [(half / speed, rank, half, 0) for rank, speed in enumerate(speeds)]
    heapify(ranks_by_end)
    order = np.argsort(-costs, kind="stable")
    dealt = []
    for cost in costs[order].tolist():
        _, rank, load, rows = ranks_by_end[0]
        dealt.append(rank)
        if rows + 1 < most:
            load += cost
            heapreplace(ranks_by_end, (load / speeds[rank], rank, load, rows + 1))
        else:
            heappop(ranks_by_end)
    ranks = np.empty(len(costs), np.int64)
    ranks[order] = dealt
    _employ_all(ranks, order, len(speeds))
    return ranks


def _employ_all(ranks: Array, order: Array, size: int) -> None:
    """Give each of `size` ranks that has no row the cheapest row of the rank with the most; `order` has it last."""
    rows = np.bincount(ranks, minlength=size)
    for idle in np.flatnonzero(rows == 0).tolist():
        busiest = int(rows.argmax())
        ranks[order[np.flatnonzero(ranks[order] == busiest)[-1]]] = idle
        rows[busiest], rows[idle] = rows[busiest] - 1, 1
