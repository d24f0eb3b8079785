"""The arrays that the model computes on: the tokens of a batch as rows without padding, and their labels.

A batch comes as a grid [B, T] in host memory. The host chooses the token rows there, where counting and selecting cost
next to nothing, and moves them to the model's device in one go. N token rows, S sequences, M labelled rows; ids and
labels are int64.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from lucid.autograd import Tensor
from lucid.backend import Array, to_device
from lucid.kernels.masking import IGNORE_INDEX
from lucid.kernels.sequences import Sequences

# The fields that hold an array, without the embeddings.
_ARRAYS = "word_ids", "token_type_ids", "position_ids", "positions", "mlm_labels", "nsp_labels"


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenRows:
    """The input of the encoder: `word_ids` [N] or `embeddings` [N, C], `token_type_ids` [N] and `position_ids` [N].

    `grid_rows` is B, the number of rows of the grid that the tokens come from.
    """

    grid_rows: int
    sequences: Sequences
    word_ids: Array | None
    token_type_ids: Array
    position_ids: Array
    embeddings: Tensor | None = None

    @classmethod
    def of_grid(
        cls,
        sequences: Sequences,
        input_ids: Array | None,
        token_type_ids: Array,
        position_ids: Array | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> "TokenRows":
        """Return the slots of `sequences` in a grid of ids [B, T], in host memory, or of embeddings [B, T, C].

        Without `position_ids` the positions of each sequence count from 0.
        """
        embeddings = None
        if inputs_embeds is not None:
            slots = to_device(sequences.slots, inputs_embeds.device)
            embeddings = inputs_embeds.reshape(-1, inputs_embeds.shape[-1])[slots]
        if position_ids is None:
            starts, lengths = np.array(sequences.bounds[:-1]), np.diff(sequences.bounds)
            positions = np.arange(sequences.bounds[-1]) - starts.repeat(lengths)
        else:
            positions = _int64(sequences.rows_of(position_ids))
        return cls(
            grid_rows=len(token_type_ids),
            sequences=sequences,
            word_ids=None if input_ids is None else _int64(sequences.rows_of(input_ids)),
            token_type_ids=_int64(sequences.rows_of(token_type_ids)),
            position_ids=positions,
            embeddings=embeddings,
        )

    def labelled(self, mlm_labels: Array, nsp_labels: Array, ignore_index: int = IGNORE_INDEX) -> "LabelledRows":
        """Return these rows with labels: `mlm_labels` [B, T] of the grid, in which `ignore_index` means none.

        `nsp_labels` [S] has a label for each sequence, where `IGNORE_INDEX` means none.
        """
        of_rows = self.sequences.rows_of(mlm_labels)
        positions = np.flatnonzero(of_rows != ignore_index)
        return LabelledRows(
            **vars(self),
            positions=positions,
            mlm_labels=_int64(of_rows[positions]),
            nsp_labels=_int64(nsp_labels),
            ignore_index=ignore_index,
            masked=len(positions),
            pairs=int(np.count_nonzero(nsp_labels != IGNORE_INDEX)),
        )

    def arrays(self) -> dict[str, Array]:
        """Return all arrays by name, those of the sequences included, but not the embeddings."""
        own = {name: array for name in _ARRAYS if (array := getattr(self, name, None)) is not None}
        return own | self.sequences.arrays()

    def with_arrays(self, arrays: Mapping[str, Array]) -> Self:
        """Return these rows with copies of their arrays that lie elsewhere, by the names that `arrays()` has."""
        own: dict[str, Any] = {name: arrays[name] for name in _ARRAYS if name in arrays}
        of_sequences = {name: arrays[name] for name in self.sequences.arrays()}
        return replace(self, sequences=self.sequences.of_arrays(of_sequences), **own)

    def on(self, device: str) -> Self:
        """Return these rows with their arrays on `device`."""
        if device == "cpu":
            return self
        return self.with_arrays({name: to_device(array, device) for name, array in self.arrays().items()})


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledRows(TokenRows):
    """Token rows, and the labels that losses and accuracies are computed from.

    Token row `positions[i]` has the true token `mlm_labels[i]` (both [M]), sequence s has the label `nsp_labels[s]`
    ([S]). An MLM label that is `ignore_index` and an NSP label that is `IGNORE_INDEX` do not count; `masked` and
    `pairs` say how many do.
    """

    positions: Array
    mlm_labels: Array
    nsp_labels: Array
    ignore_index: int
    masked: int
    pairs: int

    @classmethod
    def packed(
        cls, input_ids: Array, sequence_ids: Array, token_type_ids: Array, mlm_labels: Array, nsp_labels: Array
    ) -> "LabelledRows":
        """Return the rows of a batch whose grid rows may hold several sequences each, in host memory. Checks nothing.

        All are integers [B, T], except for `nsp_labels` [S]: a label for each sequence, grid row after grid row.
        `sequence_ids` is 1 in the slots of a grid row's first sequence, 2 in those of the next, and 0 in padding. A
        sequence attends to itself alone, and its positions count from 0. Labels in padding do not count.
        """
        rows = TokenRows.of_grid(Sequences.packed(sequence_ids), input_ids, token_type_ids)
        return rows.labelled(mlm_labels, nsp_labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, M and S."""
        return len(self.token_type_ids), len(self.positions), self.sequences.count

    def filled_up(self, shape: tuple[int, int, int]) -> "LabelledRows":
        """Return these rows of ids followed by made-up ones without labels, so that they have this shape.

        The sequences may not have a mask.
        """
        N, M, S = shape
        assert self.word_ids is not None
        return replace(
            self,
            sequences=self.sequences.filled_up(N, S),
            word_ids=_filled(self.word_ids, N, 0),
            token_type_ids=_filled(self.token_type_ids, N, 0),
            position_ids=_filled(self.position_ids, N, 0),
            positions=_filled(self.positions, M, 0),
            mlm_labels=_filled(self.mlm_labels, M, self.ignore_index),
            nsp_labels=_filled(self.nsp_labels, S, IGNORE_INDEX),
        )


def _int64(values: Array) -> Array:
    return values.astype(np.int64, copy=False)


def _filled(values: Array, count: int, value: int) -> Array:
    return np.concatenate([values, np.full(count - len(values), value, np.int64)])
