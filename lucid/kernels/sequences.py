"""Which rows of an array are which sequences: the encoder works on rows without padding, sequence after sequence."""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from lucid.backend import Array, array_module
from lucid.random import Coordinates


@dataclass(frozen=True, eq=False)
class Sequences:
    """S sequences as N rows, one after another, taken from a grid of B x T slots.

    Sequence s is rows bounds[s] to bounds[s + 1] - 1, and lies in slots that follow one another. Row r is slot
    `slots[r]`, an integer: slot t of row b of the grid is number b * T + t. `length` is T. `mask` (bool [N]) says which
    rows may be attended to; None: all.
    """

    bounds: tuple[int, ...]
    slots: Array
    length: int
    mask: Array | None = None

    @classmethod
    def padded(cls, like: Array, mask: Array | None) -> "Sequences":
        """Return all slots of a grid, shaped as `like` [B, T], of which `mask` (bool [B, T]) may be attended to."""
        return cls._of(like, [like.shape[1]] * len(like), mask)

    @classmethod
    def unpadded(cls, like: Array, mask: Array | None, labelled: Array | None = None) -> "Sequences":
        """Return each sequence of a grid, shaped as `like` [B, T], up to its last slot in `mask` or `labelled`.

        Both are bool [B, T]. What is left out changes nothing in what is kept; a sequence without any slot in `mask`
        is kept whole, since its slots attend to all of it.
        """
        T = like.shape[1]
        if mask is None:
            return cls.padded(like, None)
        needed = mask if labelled is None else mask | labelled
        ends = T - needed[:, ::-1].argmax(axis=1)
        return cls._of(like, array_module(mask).where(mask.any(axis=1), ends, T).tolist(), mask)

    @classmethod
    def packed(cls, sequence_ids: Array) -> "Sequences":
        """Return the sequences that `sequence_ids` [B, T] numbers: in each row from 1 on, and 0 in padding."""
        xp = array_module(sequence_ids)
        slots = xp.flatnonzero(sequence_ids)
        starts = xp.flatnonzero(begins(sequence_ids).reshape(-1)[slots])
        return cls((*starts.tolist(), len(slots)), slots, sequence_ids.shape[1])

    @classmethod
    def _of(cls, like: Array, lengths: list[int], mask: Array | None) -> "Sequences":
        xp, T = array_module(like), like.shape[1]
        slots = xp.flatnonzero(xp.arange(T) < xp.asarray(lengths)[:, None])
        keys = None if mask is None else mask.reshape(-1)[slots]
        return cls((0, *accumulate(lengths)), slots, T, None if keys is None or keys.all() else keys)

    @property
    def rows(self) -> list[slice]:
        """The rows of each sequence."""
        return [slice(start, stop) for start, stop in pairwise(self.bounds)]

    @property
    def first_rows(self) -> Array:
        """The number of each sequence's first row: integers [S]."""
        return array_module(self.slots).asarray(self.bounds[:-1])

    @cached_property
    def areas(self) -> list[slice]:
        """For each sequence, its part of an array that has L x L elements for each sequence of length L."""
        ends = accumulate(((rows.stop - rows.start) ** 2 for rows in self.rows), initial=0)
        return [slice(start, stop) for start, stop in pairwise(ends)]

    @cached_property
    def places(self) -> Array:
        """For each row, its sequence's first row, its length, and where its area begins: int64 [N, 3]."""
        xp = array_module(self.slots)
        lengths = np.diff(self.bounds)
        table = np.stack([self.bounds[:-1], lengths, [area.start for area in self.areas]], axis=1)
        return xp.asarray(table.astype(np.int64).repeat(lengths, axis=0))

    def rows_of(self, grid: Array) -> Array:
        """Return the rows [N, ...] of `grid` [B, T, ...]."""
        return grid.reshape(-1, *grid.shape[2:])[self.slots]

    def coordinates(self, samples: Coordinates) -> Coordinates:
        """Return where each row draws, given where each row of the grid does."""
        xp = array_module(self.slots)
        of_row = xp.asarray(samples.samples)[self.slots // self.length]
        return Coordinates(samples.seed, samples.step, of_row, self.slots % self.length)


def begins(sequence_ids: Array) -> Array:
    """Return bool [B, T]: in which slots of a grid of sequence numbers [B, T] a sequence begins."""
    begins = sequence_ids > 0
    begins[:, 1:] &= sequence_ids[:, 1:] != sequence_ids[:, :-1]
    return begins
