"""Packs several short sequences into one grid row, so that little of the row is padding.

The sequences are the same as without packing. They are packed in blocks, each of which takes a fixed number of rows:
any row of a run is found by packing its block alone. The packing is best fit, the longest sequence first: Krell et al.,
"Efficient sequence packing without cross-contamination", 2021.
"""

from bisect import bisect_left, insort
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from lucid.backend import Array
from lucid.data.batch import Batch
from lucid.kernels.masking import IGNORE_INDEX

# Sequences packed together, unless an epoch has fewer. More of them leave less room empty, fewer take less time.
_BLOCK = 1024
# Blocks packed on trial, to find out how many rows a block takes.
_TRIALS = 8


class Packing:
    """Which sequences of an epoch lie in which of its rows.

    An epoch has `count` sequences; `lengths_of(epoch, indices)` returns the lengths (int64) of those with these indices
    in the epoch. Sequences that do not fit into the rows of their block, a few per mille, are left out of the epoch.
    """

    def __init__(self, lengths_of: Callable[[int, Array], Array], count: int, row_length: int) -> None:
        self._lengths_of, self._count, self._row_length = lengths_of, count, row_length
        # The last block also has the sequences that fill no block of their own.
        self._blocks = max(1, count // _BLOCK)
        self._block = min(count, _BLOCK)
        trials = (lengths_of(epoch, np.arange(self._block)) for epoch in range(_TRIALS))
        self._block_rows = max(len(best_fit(lengths, row_length)[1]) for lengths in trials)
        rest = count - (self._blocks - 1) * self._block
        self.rows_per_epoch = (self._blocks - 1) * self._block_rows + -(-rest * self._block_rows // self._block)
        self._packed_block = lru_cache(maxsize=8)(self._pack_block)

    def sequences_in(self, epoch: int, rows: Array) -> tuple[Array, Array]:
        """Return the sequences in `rows` [B], rising rows of the epoch, as two arrays, int64 [S].

        The first has their indices in the epoch; the second, which rises, says in which element of `rows` each lies.
        """
        blocks = np.minimum(rows // self._block_rows, self._blocks - 1)
        indices, row_of = [], []
        for block in np.unique(blocks).tolist():
            here = np.flatnonzero(blocks == block)
            in_order, bounds = self._packed_block(epoch, block)
            for element, row in zip(here.tolist(), (rows[here] - block * self._block_rows).tolist(), strict=True):
                indices.append(in_order[bounds[row] : bounds[row + 1]])
                row_of.append(np.full(len(indices[-1]), element))
        return np.concatenate(indices), np.concatenate(row_of)

    def rows_of(self, epoch: int, sequences: Array) -> Array:
        """Return the row of the epoch in which each of these sequences lies, int64 [S]; -1 if it is left out.

        The sequences are indices in the epoch: this is the inverse of `sequences_in`.
        """
        blocks = np.minimum(sequences // self._block, self._blocks - 1)
        rows = np.full(len(sequences), -1)
        for block in np.unique(blocks).tolist():
            in_order, bounds = self._packed_block(epoch, block)
            here = np.flatnonzero(blocks == block)
            equal = sequences[here, None] == in_order
            found = equal.any(axis=1)
            row = np.searchsorted(bounds, equal.argmax(axis=1), side="right") - 1 + block * self._block_rows
            rows[here[found]] = row[found]
        return rows

    def _pack_block(self, epoch: int, block: int) -> tuple[Array, Array]:
        """Return the indices in the epoch of a block's sequences, row after row, and where each row begins in them."""
        first, is_last = block * self._block, block == self._blocks - 1
        indices = np.arange(first, self._count if is_last else first + self._block)
        rows = self.rows_per_epoch - block * self._block_rows if is_last else self._block_rows
        row, openers = best_fit(self._lengths_of(epoch, indices), self._row_length, at_least=rows)
        # Best fit orders rows by length. Here they follow the sequences that opened them, whose order is random.
        number = np.argsort(np.argsort(openers[:rows]))
        fits = np.flatnonzero(row < rows)
        number_of = number[row[fits]]
        order = np.argsort(number_of, kind="stable")
        return indices[fits[order]], np.searchsorted(number_of[order], np.arange(rows + 1))


def best_fit(lengths: Array, room: int, at_least: int = 0) -> tuple[Array, Array]:
    """Distribute N items of these lengths over rows. Return the row of each, int64 [N], and the first of each row, [R].

    From the longest to the shortest, an item goes to the row that it leaves the least of `room` in, or opens the next
    row if none has room. It also opens a row if fewer than `at_least`, N at most, would be opened otherwise.
    """
    row_of = np.empty(len(lengths), np.int64)
    openers: list[int] = []
    # The room left in each row that is not full, and its number, the fullest row first.
    open_rows: list[tuple[int, int]] = []
    shortest = int(lengths.min())
    order = np.argsort(-lengths, kind="stable")
    for left_over, (item, length) in zip(
        range(len(lengths), 0, -1), zip(order.tolist(), lengths[order].tolist(), strict=True), strict=True
    ):
        fullest = bisect_left(open_rows, (length, 0))
        if fullest < len(open_rows) and left_over > at_least - len(openers):
            left, row = open_rows.pop(fullest)
        else:
            left, row = room, len(openers)
            openers.append(item)
        row_of[item] = row
        if left - length >= shortest:
            insort(open_rows, (left - length, row))
    return row_of, np.array(openers)


def packed(batch: Batch, row: Array, padding: int) -> Batch:
    """Return the sequences of `batch`, one a row, packed side by side: sequence s into row `row[s]`.

    `row` [S] rises from 0 without a gap. Empty slots get the token `padding`.
    """
    T, lengths = batch.input_ids.shape[1], batch.sequence_lengths
    ends = np.cumsum(lengths)
    starts = ends - lengths
    firsts = np.flatnonzero(np.diff(row, prepend=-1))
    # Within a row, sequences keep the order of the batch.
    source = np.flatnonzero(batch.sequence_ids)
    target = np.arange(ends[-1]) + np.repeat(row * T - starts[firsts][row], lengths)

    def laid(values: Array, empty: int) -> Array:
        grid = np.full((len(firsts), T), empty, np.int32)
        grid.reshape(-1)[target] = values
        return grid

    return Batch(
        input_ids=laid(batch.input_ids.reshape(-1)[source], padding),
        sequence_ids=laid(np.repeat(np.arange(len(row)) - firsts[row] + 1, lengths), 0),
        token_type_ids=laid(batch.token_type_ids.reshape(-1)[source], 0),
        mlm_labels=laid(batch.mlm_labels.reshape(-1)[source], IGNORE_INDEX),
        nsp_labels=batch.nsp_labels,
        samples=batch.samples[firsts],
    )
