"""The part of a corpus that is counted: all of it, or pieces of a large one."""

import numpy as np

from lucid.data import Corpus

# Tokens that are counted, at most, in this many places of equal distance.
_COUNTED, _PLACES = 1 << 23, 64


def pieces(corpus: Corpus) -> list[tuple[int, int]]:
    """Return the start and the end, in tokens, of each piece: with more than 8 million tokens, of 64 with so many."""
    total = corpus.token_count
    if total <= _COUNTED:
        return [(0, total)]
    length = _COUNTED // _PLACES
    starts = np.linspace(0, total - length, _PLACES).astype(np.int64).tolist()
    return [(start, start + length) for start in starts]
