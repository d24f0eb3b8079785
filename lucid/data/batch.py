"""One batch of samples, as the model takes it."""

from dataclasses import dataclass, fields

import numpy as np

from lucid.backend import Array

# The label of what no loss is computed for.
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """B samples of T tokens; a sample is `[CLS] A [SEP] B [SEP]`, then padding.

    `input_ids`, `token_type_ids` and `mlm_labels` are int32 [B, T], `attention_mask` is bool [B, T], True where there
    is no padding. `mlm_labels` is the original token where it was masked, `IGNORED` elsewhere. `nsp_labels`, int32 [B],
    is 0 where B follows A, 1 where B is of another document. `samples`, int64 [B], is each row's index in the *global*
    batch of its step.
    """

    input_ids: Array
    attention_mask: Array
    token_type_ids: Array
    mlm_labels: Array
    nsp_labels: Array
    samples: Array

    @property
    def masked_tokens(self) -> int:
        """How many tokens the MLM loss is over."""
        return int(np.count_nonzero(self.mlm_labels != IGNORED))

    def rows(self, start: int, stop: int) -> "Batch":
        """Return rows `start` to `stop - 1`, as a micro-batch; its arrays are views."""
        return Batch(**{field.name: getattr(self, field.name)[start:stop] for field in fields(self)})

    @classmethod
    def joined(cls, parts: list["Batch"]) -> "Batch":
        """Return the rows of all `parts`, one after another."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)}
        )
