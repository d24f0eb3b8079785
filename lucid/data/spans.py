"""Cuts the documents into spans: runs of whole sentences that fill a sequence. An epoch has one sample for each span.

The spans depend only on the corpus and the length. The sampler draws what varies from epoch to epoch.
"""

import numpy as np

from lucid.backend import Array
from lucid.data.shards import Corpus

# Documents cut at once. Many documents share a pass of NumPy calls, and the number bounds the memory.
_DOCUMENTS_AT_ONCE = 4096


def find_spans(corpus: Corpus, longest: int) -> Array:
    """Return int64 [N + 1]: the first sentence of each span, and the end of the last. Spans leave no gaps.

    A span ends with the sentence that brings it to `longest` tokens, or with its document. It has at least two
    sentences, so that it can be split between them, unless its document has only one.
    """
    count = corpus.document_count
    blocks = ((first, min(first + _DOCUMENTS_AT_ONCE, count)) for first in range(0, count, _DOCUMENTS_AT_ONCE))
    starts = [_span_starts(corpus, first, last, longest) for first, last in blocks]
    return np.concatenate([*starts, [corpus.sentence_count]])


def _span_starts(corpus: Corpus, first: int, last: int, longest: int) -> Array:
    """Return the first sentences (int64, rising) of the spans of documents `first` to `last - 1`."""
    boundaries = corpus.documents.at(np.arange(first, last + 1))
    offsets = corpus.sentences.at(np.arange(boundaries[0], boundaries[-1] + 1))
    found = []
    # Each round advances all documents by one span.
    start, document_end = boundaries[:-1], boundaries[1:]
    while len(start):
        found.append(start)
        full = np.searchsorted(offsets, offsets[start - boundaries[0]] + longest) + boundaries[0]
        stop = np.maximum(full, start + 2)
        # If one sentence is left over, it joins the span before it.
        continues = stop < document_end - 1
        start, document_end = stop[continues], document_end[continues]
    return np.sort(np.concatenate(found))
