"""One batch of samples: the input of a training step."""

from dataclasses import dataclass, fields

import numpy as np

from lucid.backend import Array
from lucid.kernels.masking import IGNORE_INDEX


@dataclass(frozen=True)
class Batch:
    """B samples of T tokens. A sample is a sequence `[CLS] A [SEP] B [SEP]`, or several packed ones, then padding.

    `input_ids`, `token_type_ids`, `mlm_labels` and `sequence_ids` are int32 [B, T]. `mlm_labels` holds the original
    token at masked positions and `IGNORE_INDEX` elsewhere. `sequence_ids` numbers the sequences of a sample from 1 and
    is 0 in padding. `nsp_labels`, int32 [S], has one label for each sequence, sample after sample: 0 if B follows A, 1
    if B comes from another document. `samples`, int64 [B], holds each sample's index in the *global* batch of its step.
    """

    input_ids: Array
    sequence_ids: Array
    token_type_ids: Array
    mlm_labels: Array
    nsp_labels: Array
    samples: Array

    @property
    def masked_tokens(self) -> int:
        """The number of masked tokens, over which the MLM loss is summed."""
        return int(np.count_nonzero(self.mlm_labels != IGNORE_INDEX))

    @property
    def attention_mask(self) -> Array:
        """Bool [B, T]: False in padding."""
        return self.sequence_ids > 0

    @property
    def sequence_lengths(self) -> Array:
        """Int64 [S]: the number of tokens of each sequence, in the order of `nsp_labels`."""
        B, T = self.sequence_ids.shape
        numbers = (self.sequence_ids + np.arange(B)[:, None] * (T + 1))[self.attention_mask]
        return np.diff(np.flatnonzero(np.diff(numbers, prepend=0, append=0)))

    def slice(self, start: int, stop: int) -> "Batch":
        """Return the samples `start` to `stop - 1`. The arrays are views of this batch's."""
        parts = {field.name: getattr(self, field.name)[start:stop] for field in fields(self)}
        ends = np.concatenate([[0], self.sequence_ids.max(axis=1).cumsum()])
        return Batch(**parts | {"nsp_labels": self.nsp_labels[ends[start] : ends[min(stop, len(ends) - 1)]]})

    @classmethod
    def joined(cls, parts: list["Batch"]) -> "Batch":
        """Return the samples of all `parts`, one part after another."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)}
        )

    def in_order(self) -> "Batch":
        """Return the same samples in the order of their indices in the global batch."""
        order = np.argsort(self.samples)
        labels = np.argsort(np.repeat(self.samples, self.sequence_ids.max(axis=1)), kind="stable")
        parts = {field.name: getattr(self, field.name)[order] for field in fields(self) if field.name != "nsp_labels"}
        return Batch(**parts, nsp_labels=self.nsp_labels[labels])
