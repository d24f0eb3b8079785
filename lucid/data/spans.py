"""Cuts the documents into spans, the samples of an epoch: runs of whole sentences that fill a sequence.

The cut depends on the corpus and the length alone; what varies by epoch is drawn by the sampler.
"""

import numpy as np

from lucid.backend import Array
from lucid.data.shards import Corpus

# Documents cut at once: bounds the memory, and makes one pass of NumPy calls serve many documents.
_DOCUMENTS_AT_ONCE = 4096


def find_spans(corpus: Corpus, longest: int) -> Array:
    """Return int64 [N + 1]: the sentences at which spans start, and the end. Spans lie side by side.

    A span ends with the sentence that takes it to `longest` tokens, or with its document. It has two sentences or
    more, so that it can be split between sentences, unless it is a document of one sentence.
    """
    count = corpus.document_count
    blocks = ((first, min(first + _DOCUMENTS_AT_ONCE, count)) for first in range(0, count, _DOCUMENTS_AT_ONCE))
    starts = [_span_starts(corpus, first, last, longest) for first, last in blocks]
    return np.concatenate([*starts, [corpus.sentence_count]])


def _span_starts(corpus: Corpus, first: int, last: int, longest: int) -> Array:
    """Return int64: where the spans of documents `first` to `last - 1` start, in order."""
    boundaries = corpus.documents.at(np.arange(first, last + 1))
    offsets = corpus.sentences.at(np.arange(boundaries[0], boundaries[-1] + 1))
    found = []
    # All documents advance together, by one span a round.
    start, document_end = boundaries[:-1], boundaries[1:]
    while len(start):
        found.append(start)
        full = np.searchsorted(offsets, offsets[start - boundaries[0]] + longest) + boundaries[0]
        stop = np.maximum(full, start + 2)
        # A single sentence left over joins the span before it.
        goes_on = stop < document_end - 1
        start, document_end = stop[goes_on], document_end[goes_on]
    return np.sort(np.concatenate(found))
