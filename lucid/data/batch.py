"""One batch of samples, as the model takes it."""

from dataclasses import dataclass, fields

import numpy as np

from lucid.backend import Array
from lucid.kernels.masking import IGNORE_INDEX


@dataclass(frozen=True)
class Batch:
    """B samples of T tokens. A sample is one sequence `[CLS] A [SEP] B [SEP]`, or several packed, then padding.

    `input_ids`, `token_type_ids` and `mlm_labels` are int32 [B, T]. `mlm_labels` is the original token where it was
    masked, `IGNORE_INDEX` elsewhere. `sequence_ids`, int32 [B, T], numbers the sequences of a sample from 1 on, and is
    0 in padding. `nsp_labels`, int32 [S], is for each sequence, sample after sample, 0 where B follows A, 1 where B is
    of another document. `samples`, int64 [B], is each row's index in the *global* batch of its step.
    """

    input_ids: Array
    sequence_ids: Array
    token_type_ids: Array
    mlm_labels: Array
    nsp_labels: Array
    samples: Array

    @property
    def masked_tokens(self) -> int:
        """How many tokens the MLM loss is over."""
        return int(np.count_nonzero(self.mlm_labels != IGNORE_INDEX))

    @property
    def attention_mask(self) -> Array:
        """Bool [B, T]: where there is no padding."""
        return self.sequence_ids > 0

    @property
    def sequence_lengths(self) -> Array:
        """Int64 [S]: the tokens of each sequence, as `nsp_labels` has them in order."""
        B, T = self.sequence_ids.shape
        numbers = (self.sequence_ids + np.arange(B)[:, None] * (T + 1))[self.attention_mask]
        return np.diff(np.flatnonzero(np.diff(numbers, prepend=0, append=0)))

    def rows(self, start: int, stop: int) -> "Batch":
        """Return rows `start` to `stop - 1`, as a micro-batch; its arrays are views."""
        parts = {field.name: getattr(self, field.name)[start:stop] for field in fields(self)}
        ends = np.concatenate([[0], self.sequence_ids.max(axis=1).cumsum()])
        return Batch(**parts | {"nsp_labels": self.nsp_labels[slice(*ends[[start, min(stop, len(ends) - 1)]])]})

    @classmethod
    def joined(cls, parts: list["Batch"]) -> "Batch":
        """Return the rows of all `parts`, one after another."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)}
        )
