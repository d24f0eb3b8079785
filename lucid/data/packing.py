"""Packs several short sequences into one row, so that little of it is padding.

The sequences are those that there would be without packing. They are packed in blocks, each of which takes a fixed
number of rows: so a row is found by computing its block alone, wherever it is in the run. Best fit, the longest first:
Krell et al., "Efficient sequence packing without cross-contamination", 2021.
"""

from bisect import bisect_left, insort
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from lucid.backend import Array
from lucid.data.batch import Batch
from lucid.kernels.masking import IGNORE_INDEX

# Sequences packed together, unless an epoch has fewer: many leave little room, few take little time.
_BLOCK = 1024
# Blocks that are packed on trial, to know how many rows a block takes.
_TRIALS = 8


class Packing:
    """Which sequences of an epoch are in which of its rows.

    `lengths_of(epoch, places)` gives the lengths, int64, of the sequences at these places of an epoch, of which there
    are `count`. What does not fit into the rows of its block, a few sequences of a thousand, is left out of the epoch.
    """

    def __init__(self, lengths_of: Callable[[int, Array], Array], count: int, row_length: int) -> None:
        self._lengths_of, self._count, self._row_length = lengths_of, count, row_length
        # The last block is larger by what is left over.
        self._blocks = max(1, count // _BLOCK)
        self._block = min(count, _BLOCK)
        trials = (lengths_of(epoch, np.arange(self._block)) for epoch in range(_TRIALS))
        self._block_rows = max(len(best_fit(lengths, row_length)[1]) for lengths in trials)
        rest = count - (self._blocks - 1) * self._block
        self.rows_per_epoch = (self._blocks - 1) * self._block_rows + -(-rest * self._block_rows // self._block)
        self._packed_block = lru_cache(maxsize=8)(self._pack_block)

    def sequences_in(self, epoch: int, rows: Array) -> tuple[Array, Array]:
        """Return, both int64 [S], the places in the epoch of the sequences in `rows`, and which of `rows` each is in.

        `rows` [B] are rows of the epoch, and rise; so does what is returned of them, indices of `rows`.
        """
        blocks = np.minimum(rows // self._block_rows, self._blocks - 1)
        places, found = [], []
        for block in np.unique(blocks).tolist():
            here = np.flatnonzero(blocks == block)
            in_order, bounds = self._packed_block(epoch, block)
            for index, row in zip(here.tolist(), (rows[here] - block * self._block_rows).tolist(), strict=True):
                places.append(in_order[bounds[row] : bounds[row + 1]])
                found.append(np.full(len(places[-1]), index))
        return np.concatenate(places), np.concatenate(found)

    def _pack_block(self, epoch: int, block: int) -> tuple[Array, Array]:
        """Return the places in the epoch of a block's sequences, row after row, and where each row begins in them."""
        first, is_last = block * self._block, block == self._blocks - 1
        places = np.arange(first, self._count if is_last else first + self._block)
        rows = self.rows_per_epoch - block * self._block_rows if is_last else self._block_rows
        row, openers = best_fit(self._lengths_of(epoch, places), self._row_length, at_least=rows)
        # Rows are put in the order of the sequences that opened them, which is random: best fit's goes by length.
        number = np.argsort(np.argsort(openers[:rows]))
        fits = np.flatnonzero(row < rows)
        number_of = number[row[fits]]
        order = np.argsort(number_of, kind="stable")
        return places[fits[order]], np.searchsorted(number_of[order], np.arange(rows + 1))


def best_fit(lengths: Array, room: int, at_least: int = 0) -> tuple[Array, Array]:
    """Return which row each thing of these lengths [N] goes to, int64 [N], and which thing opened each row, int64 [R].

    From the longest to the shortest, a thing goes to the row in which least of `room` is then left, or else opens the
    next row. It does so too where otherwise fewer than `at_least` rows would be opened; N is no less.
    """
    row_of = np.empty(len(lengths), np.int64)
    openers: list[int] = []
    # Room left and number of each row that has room, the fullest first.
    open_rows: list[tuple[int, int]] = []
    shortest = int(lengths.min())
    order = np.argsort(-lengths, kind="stable")
    for left_over, (thing, length) in zip(
        range(len(lengths), 0, -1), zip(order.tolist(), lengths[order].tolist(), strict=True), strict=True
    ):
        fullest = bisect_left(open_rows, (length, 0))
        if fullest < len(open_rows) and left_over > at_least - len(openers):
            left, row = open_rows.pop(fullest)
        else:
            left, row = room, len(openers)
            openers.append(thing)
        row_of[thing] = row
        if left - length >= shortest:
            insort(open_rows, (left - length, row))
    return row_of, np.array(openers)


def packed(batch: Batch, row: Array, padding: int) -> Batch:
    """Return the sequences of `batch`, of which it has one a row, put side by side: sequence s into row `row[s]`.

    `row` [S] rises from 0 without a gap; `padding` is the token of what stays empty.
    """
    T, lengths = batch.input_ids.shape[1], batch.sequence_lengths
    ends = np.cumsum(lengths)
    starts = ends - lengths
    firsts = np.flatnonzero(np.diff(row, prepend=-1))
    # The sequences of a row follow each other in the row as in the batch.
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
