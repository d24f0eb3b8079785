"""What the model computes on: the rows of a batch, which of them have labels, and which sequences they are.

All of it is chosen on the host, where checking and counting cost nothing, and then moved to the model's device at once.
N rows, S sequences, M labelled rows; ids and labels are int64.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lucid.autograd import Tensor
from lucid.backend import Array, to_device
from lucid.kernels.masking import IGNORE_INDEX
from lucid.kernels.sequences import Sequences

# The arrays of rows and of labels, by name.
_IDS = "word_ids", "token_type_ids", "position_ids"
_LABELS = "positions", "mlm_labels", "nsp_labels"


@dataclass(frozen=True, eq=False)
class Rows:
    """What the encoder takes of a batch of B samples: `word_ids` [N] or `embeddings` [N, C], and both other ids [N]."""

    batch: int
    sequences: Sequences
    word_ids: Array | None
    token_type_ids: Array
    position_ids: Array
    embeddings: Tensor | None = None

    def on(self, device: str) -> "Rows":
        """Return these rows with their arrays on `device`."""
        if device == "cpu":
            return self
        ids: dict[str, Any] = {
            name: to_device(array, device) for name in _IDS if (array := getattr(self, name)) is not None
        }
        return replace(self, sequences=self.sequences.on(device), **ids)


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """What training takes of a batch: rows, which of them are masked, and the labels of these and of the sequences.

    `positions` [M] are numbers of rows, whose tokens are `mlm_labels` [M]; `nsp_labels` [S]. A label that is
    `ignore_index` does not count; `masked` and `pairs` are how many do.
    """

    rows: Rows
    positions: Array
    mlm_labels: Array
    nsp_labels: Array
    ignore_index: int
    masked: int
    pairs: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, M and S."""
        return len(self.rows.token_type_ids), len(self.positions), self.rows.sequences.count

    def filled_up(self, shape: tuple[int, int, int]) -> "LabelledRows":
        """Return these rows and made-up ones without labels, so that `shape` is this; without a mask only."""
        N, M, S = shape
        rows = self.rows
        assert rows.word_ids is not None
        return replace(
            self,
            rows=replace(
                rows,
                sequences=rows.sequences.filled_up(N, S),
                word_ids=_filled(rows.word_ids, N, 0),
                token_type_ids=_filled(rows.token_type_ids, N, 0),
                position_ids=_filled(rows.position_ids, N, 0),
            ),
            positions=_filled(self.positions, M, 0),
            mlm_labels=_filled(self.mlm_labels, M, self.ignore_index),
            nsp_labels=_filled(self.nsp_labels, S, IGNORE_INDEX),
        )

    def arrays(self) -> dict[str, Array]:
        """Return all arrays by name; `of_arrays` puts others in their place."""
        rows = self.rows
        assert rows.word_ids is not None
        own = {name: getattr(rows, name) for name in _IDS} | {name: getattr(self, name) for name in _LABELS}
        return own | {f"sequences: {name}": array for name, array in rows.sequences.arrays().items()}

    def of_arrays(self, arrays: Mapping[str, Array]) -> "LabelledRows":
        """Return these rows with `arrays`, equal to those of the method of this name, but elsewhere."""
        of_sequences = {name.partition(": ")[2]: array for name, array in arrays.items() if ": " in name}
        ids: dict[str, Any] = {name: arrays[name] for name in _IDS}
        labels: dict[str, Any] = {name: arrays[name] for name in _LABELS}
        rows = replace(self.rows, sequences=self.rows.sequences.of_arrays(of_sequences), **ids)
        return replace(self, rows=rows, **labels)

    def on(self, device: str) -> "LabelledRows":
        """Return these rows with their arrays on `device`."""
        if device == "cpu":
            return self
        own: dict[str, Any] = {name: to_device(getattr(self, name), device) for name in _LABELS}
        return replace(self, rows=self.rows.on(device), **own)


def _filled(values: Array, count: int, value: int) -> Array:
    return np.concatenate([values, np.full(count - len(values), value, np.int64)])
