"""Cuts the documents into spans, each the text of one sample: an epoch has one sample for each span.

The spans depend only on the corpus and the length. The sampler draws what varies from epoch to epoch.
"""

import numpy as np

from lucid.backend import Array
from lucid.data.shards import Corpus

# Documents cut at once. Many documents share a pass of NumPy calls, and the number bounds the memory.
_DOCUMENTS_AT_ONCE = 4096


def longest_span(longest: int) -> int:
    """Return the most tokens that a span may have if a sample has room for `longest`: half as many again.

    A sample of such a span leaves tokens out at its ends. It then keeps at least half of each of its segments, wherever
    the span is split in two: the first half or the last. So no token is left out of all samples.
    """
    return longest + longest // 2


def find_spans(corpus: Corpus, longest: int) -> Array:
    """Return int64 [N + 1]: the first token of each span, and the end of the last. Spans leave no gaps.

    A span consists of whole sentences: it ends with the sentence that brings it to `longest` tokens, or with its
    document. It has at least two sentences, so that it can be split between them, unless its document has only one.
    Where that makes it longer than `longest_span`, it ends after `longest` tokens instead, inside a sentence.
    """
    count = corpus.document_count
    blocks = ((first, min(first + _DOCUMENTS_AT_ONCE, count)) for first in range(0, count, _DOCUMENTS_AT_ONCE))
    starts = [_span_starts(corpus, first, last, longest) for first, last in blocks]
    return np.concatenate([*starts, [corpus.token_count]])


def _span_starts(corpus: Corpus, first: int, last: int, longest: int) -> Array:
    """Return the first tokens (int64, rising) of the spans of documents `first` to `last - 1`."""
    documents = corpus.documents.at(np.arange(first, last + 1))
    offsets = corpus.sentences.at(np.arange(documents[0], documents[-1] + 1))
    # From here on sentences are counted from the first one of these documents.
    documents = documents - documents[0]
    found = []
    # Each round advances all documents by one span.
    start, last_sentence_end = offsets[documents[:-1]], documents[1:]
    while len(start):
        found.append(start)
        stop = np.maximum(np.searchsorted(offsets, start + longest), np.searchsorted(offsets, start + 1) + 1)
        # If one sentence is left over, it joins the span before it.
        stop = np.where(stop < last_sentence_end - 1, stop, last_sentence_end)
        end = offsets[stop]
        end = np.where(end - start > longest_span(longest), start + longest, end)
        continues = end < offsets[last_sentence_end]
        start, last_sentence_end = end[continues], last_sentence_end[continues]
    return np.sort(np.concatenate(found))
