"""The sequences among the token rows: the encoder works on rows without padding, sequence after sequence."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from lucid.backend import Array, array_module, to_device
from lucid.random import Coordinates

# The most rows of a tile, the unit of work of attention on a GPU: see `Sequences.tiles`.
TILE = 64


@dataclass(frozen=True, eq=False)
class Sequences:
    """S sequences, taken from a grid of B x T slots, as N token rows, one sequence after another.

    Sequence s is token rows bounds[s] to bounds[s + 1] - 1, in adjacent slots; it may be empty. Token row r is slot
    `slots[r]`, an integer: slot t of grid row b has number b * T + t. `length` is T. `mask` (bool [N]) says which token
    rows are keys; None means all. `tables` caches the tables for kernels, by name.
    """

    bounds: tuple[int, ...]
    slots: Array
    length: int
    mask: Array | None = None
    tables: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def padded(cls, like: Array, mask: Array | None) -> "Sequences":
        """Return all slots of a grid, shaped like `like` [B, T]; `mask` (bool [B, T]) says which are keys."""
        return cls._of(like, [like.shape[1]] * len(like), mask)

    @classmethod
    def unpadded(cls, like: Array, mask: Array | None, labelled: Array | None = None) -> "Sequences":
        """Return each sequence of a grid, shaped like `like` [B, T], up to its last slot in `mask` or `labelled`.

        Both are bool [B, T]. The omitted slots influence none of the others. A sequence without any slot in `mask` is
        kept whole, because its slots attend to all of it.
        """
        T = like.shape[1]
        if mask is None:
            return cls.padded(like, None)
        needed = mask if labelled is None else mask | labelled
        ends = T - needed[:, ::-1].argmax(axis=1)
        return cls._of(like, np.where(mask.any(axis=1), ends, T).tolist(), mask)

    @classmethod
    def packed(cls, sequence_ids: Array) -> "Sequences":
        """Return the sequences that `sequence_ids` [B, T] numbers: from 1 in each grid row, with 0 for padding."""
        slots = np.flatnonzero(sequence_ids)
        starts = np.flatnonzero(begins(sequence_ids).reshape(-1)[slots])
        return cls((*starts.tolist(), len(slots)), slots, sequence_ids.shape[1])

    @classmethod
    def _of(cls, like: Array, lengths: list[int], mask: Array | None) -> "Sequences":
        T = like.shape[1]
        slots = np.flatnonzero(np.arange(T) < np.asarray(lengths)[:, None])
        keys = None if mask is None else mask.reshape(-1)[slots]
        return cls((0, *accumulate(lengths)), slots, T, None if keys is None or keys.all() else keys)

    def filled_up(self, rows: int, sequences: int) -> "Sequences":
        """Return these sequences and more, empty or made of filler: `rows` rows and `sequences` sequences in total.

        There must be no mask. Filler rows have slot 0. The additional sequences must suffice for them, T rows each.
        """
        assert self.mask is None
        ends = np.arange(1, sequences - len(self.bounds) + 2) * self.length + self.bounds[-1]
        bounds = *self.bounds, *np.minimum(ends, rows).tolist()
        assert bounds[-1] == rows
        return Sequences(bounds, np.concatenate([self.slots, np.zeros(rows - len(self.slots), np.int64)]), self.length)

    def arrays(self) -> dict[str, Array]:
        """Return all arrays that kernels on a GPU read, by name."""
        tables = {"first_rows": self.first_rows, "bounds": self.bounds_table, "tiles": self.tiles}
        return {"slots": self.slots, **({} if self.mask is None else {"mask": self.mask}), **tables}

    def of_arrays(self, arrays: Mapping[str, Array]) -> "Sequences":
        """Return these sequences with other copies of their `arrays`, for example on a GPU."""
        tables = dict(arrays)
        return replace(self, slots=tables.pop("slots"), mask=tables.pop("mask", None), tables=tables)

    def on(self, device: str) -> "Sequences":
        """Return these sequences with their arrays on `device`."""
        if device == "cpu":
            return self
        return self.of_arrays({name: to_device(array, device) for name, array in self.arrays().items()})

    @property
    def count(self) -> int:
        """The number of sequences, S."""
        return len(self.bounds) - 1

    @property
    def rows(self) -> list[slice]:
        """The token rows of each sequence."""
        return [slice(start, stop) for start, stop in pairwise(self.bounds)]

    @property
    def first_rows(self) -> Array:
        """The first token row of each sequence: int64 [S]. An empty sequence has an arbitrary row."""
        return self._table("first_rows", lambda: np.minimum(self.bounds[:-1], max(0, self.bounds[-1] - 1)))

    @property
    def bounds_table(self) -> Array:
        """The bounds: int64 [S + 1]."""
        return self._table("bounds", lambda: np.array(self.bounds))

    @cached_property
    def areas(self) -> list[slice]:
        """For each sequence, its slice of an array with L x L elements for each sequence of length L."""
        ends = accumulate(((rows.stop - rows.start) ** 2 for rows in self.rows), initial=0)
        return [slice(start, stop) for start, stop in pairwise(ends)]

    @property
    def tiles(self) -> Array:
        """The tiles of the sequences, of at most `TILE` rows each: int64 [K, 4], K = ceil(N / TILE) + S.

        A tile is (first row, number of rows, first row of its sequence, length of its sequence). Unused tiles are
        zeros, at the end, so that K follows from N and S alone.
        """
        return self._table("tiles", self._tiles)

    def _tiles(self) -> np.ndarray:
        starts, lengths = np.array(self.bounds[:-1]), np.diff(self.bounds)
        counts = -(-lengths // TILE)
        table = np.zeros((-(-self.bounds[-1] // TILE) + self.count, 4), np.int64)
        used = table[: counts.sum()]
        within = (np.arange(len(used)) - (counts.cumsum() - counts).repeat(counts)) * TILE
        used[:, 2], used[:, 3] = starts.repeat(counts), lengths.repeat(counts)
        used[:, 0] = used[:, 2] + within
        used[:, 1] = np.minimum(TILE, used[:, 3] - within)
        return table

    def _table(self, name: str, make: Callable[[], np.ndarray]) -> Array:
        """Return a table as int64 on the device of the slots, computed on first use."""
        if name not in self.tables:
            self.tables[name] = array_module(self.slots).asarray(make().astype(np.int64))
        return self.tables[name]

    def rows_of(self, grid: Array) -> Array:
        """Return the token rows [N, ...] of `grid` [B, T, ...]."""
        return grid.reshape(-1, *grid.shape[2:])[self.slots]

    def coordinates(self, samples: Coordinates) -> Coordinates:
        """Return the coordinates of each token row, given those of each grid row."""
        xp = array_module(self.slots)
        of_row = xp.asarray(samples.counters)[self.slots // self.length]
        return Coordinates(samples.seed, of_row, self.slots % self.length)


def begins(sequence_ids: Array) -> Array:
    """Return bool [B, T]: whether a sequence begins in each slot of a grid of sequence numbers [B, T]."""
    begins = sequence_ids > 0
    begins[:, 1:] &= sequence_ids[:, 1:] != sequence_ids[:, :-1]
    return begins
