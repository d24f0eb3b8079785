"""Token ids in place of text: for DNA, logs, chemistry, and languages that another program has split into words.

A document is a list of ids, or a list of sentences that are such lists.
"""

from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from lucid.backend import Array
from lucid.data.tokenizer import SPECIAL_TEXTS, SpecialTokens
from lucid.preparation.inputs.omissions import SPECIAL_ID, UNKNOWN_ID

# More than any id: a number that is none may be larger than an array can hold.
_NO_ID = 1 << 62


class TokenIds(NamedTuple):
    """The ids of a document, int64 [T], and the number of ids of each sentence, int64 [S]."""

    ids: Array
    lengths: Array

    def fault(self, vocab_size: int, special: SpecialTokens) -> tuple[str, str] | None:
        """Return the reason and the detail by which the ids cannot be used with a vocabulary; None if they can.

        [UNK] may stand in a text. The other special tokens may not: training puts them where they belong.
        """
        outside = self.ids[(self.ids < 0) | (self.ids >= vocab_size)]
        if len(outside):
            shown = outside[0] if outside[0] < _NO_ID else "too large"
            return UNKNOWN_ID, f"{shown}, in a vocabulary of {vocab_size:,} tokens"
        for name, text in SPECIAL_TEXTS.items():
            if name != "unknown" and (self.ids == getattr(special, name)).any():
                return SPECIAL_ID, text
        return None


def token_ids(value: Any) -> TokenIds | None:
    """Return the ids in a value from JSON, or in an array of pyarrow; None if it does not consist of whole numbers."""
    if hasattr(value, "to_pylist"):
        return _of_arrow(value)
    if not isinstance(value, list):
        return None
    sentences = value if value and all(isinstance(each, list) for each in value) else [value]
    ids = list(chain.from_iterable(sentences))
    if set(map(type, ids)) - {int}:  # True is a number for Python
        return None
    try:
        array = np.array(ids, np.int64)
    except OverflowError:
        array = np.array([each if abs(each) < _NO_ID else _NO_ID for each in ids], np.int64)
    return TokenIds(array, np.array([len(each) for each in sentences], np.int64))


def _of_arrow(values: Any) -> TokenIds | None:
    from pyarrow import types

    lengths = np.array([len(values)], np.int64)
    if types.is_list(values.type) or types.is_large_list(values.type) or types.is_fixed_size_list(values.type):
        if values.null_count:
            return None
        lengths = values.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        values = values.flatten()
    if values.null_count or not (types.is_integer(values.type) or not len(values)):
        return None
    if not len(values):
        return TokenIds(np.zeros(0, np.int64), lengths)
    ids = values.to_numpy()
    return TokenIds((np.minimum(ids, _NO_ID) if ids.dtype == np.uint64 else ids).astype(np.int64), lengths)
