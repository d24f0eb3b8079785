"""Chooses the two segments of each sample: their starts and lengths, and whether B follows A.

As in the original (Devlin et al. 2018, `create_pretraining_data.py`), B is either A's continuation or a run of
sentences from another document, with equal probability. Unlike there, nothing else in a pair depends on its label: a
random B starts where a span could have been split, has the length of the true continuation, and no document forces a
label.
"""

from dataclasses import dataclass

import numpy as np

from lucid.backend import Array
from lucid.data.shards import Corpus
from lucid.random import integers, uniform

# The number of random words for each sample: one for each choice below.
WORDS = 10
_SHORT, _SHORT_LENGTH, _SHORT_START, _SPLIT, _LABEL = range(5)
_OTHER_SPAN, _OTHER_START, _OTHER_WITHIN, _CUT_FIRST, _CUT_SECOND = range(5, WORDS)


@dataclass(frozen=True)
class SegmentPairs:
    """The first token and the length of both segments of B samples, and the NSP labels: int64 [B] each."""

    first_start: Array
    first_length: Array
    second_start: Array
    second_length: Array
    labels: Array


@dataclass(frozen=True)
class PairChooser:
    """Chooses segments from the spans of a corpus. A pair has at most `longest` tokens."""

    corpus: Corpus
    spans: Array
    longest: int
    short_sequence_probability: float

    def choose(self, span: Array, words: Array) -> SegmentPairs:
        """Return the segments of the spans numbered `span` [B], drawn from the random `words` (uint32 [B, WORDS])."""
        start, stop, target = self._narrowed(self.spans[span], self.spans[span + 1], words)
        offsets = self.corpus.sentences.at
        first_start, end = offsets(start), offsets(stop)
        inside = stop - start == 1
        between = offsets(start + 1 + integers(words[:, _SPLIT], np.maximum(stop - start - 1, 1)))
        split = np.where(inside, _within(first_start, end, words[:, _SPLIT]), between)

        labels = _coin(words[:, _LABEL])
        other_start, other_end = self._other(span, end - split, inside, words)
        second_start = np.where(labels == 1, other_start, split)
        second_end = np.where(labels == 1, other_end, end)

        first_cut, second_cut = _cuts(split - first_start, second_end - second_start, target)
        return SegmentPairs(
            first_start=first_start + first_cut * _coin(words[:, _CUT_FIRST]),
            first_length=split - first_start - first_cut,
            second_start=second_start + second_cut * _coin(words[:, _CUT_SECOND]),
            second_length=second_end - second_start - second_cut,
            labels=labels,
        )

    def choose_single(self, span: Array, words: Array) -> SegmentPairs:
        """Return one segment a sample: as much of its span as fits. The second is empty and the labels are 0."""
        start, stop, target = self._narrowed(self.spans[span], self.spans[span + 1], words)
        first_start = self.corpus.sentences.at(start)
        length = self.corpus.sentences.at(stop) - first_start
        cut = np.maximum(length - target, 0)
        nothing = np.zeros_like(span)
        return SegmentPairs(first_start + cut * _coin(words[:, _CUT_FIRST]), length - cut, nothing, nothing, nothing)

    def _narrowed(self, start: Array, stop: Array, words: Array) -> tuple[Array, Array, Array]:
        """Return the first sentence, the end and the allowed tokens of each span, narrowed to a part if it is short."""
        short = uniform(words[:, _SHORT]) < self.short_sequence_probability
        short_length = 2 + integers(words[:, _SHORT_LENGTH], self.longest - 1)
        sentences = self.corpus.sentences
        short_start = start + integers(words[:, _SHORT_START], np.maximum(stop - start - 1, 1))
        enough = np.minimum(sentences.at(short_start) + short_length, sentences.at(stop))
        short_stop = np.minimum(np.maximum(sentences.first_from(enough), short_start + 2), stop)
        return (
            np.where(short, short_start, start),
            np.where(short, short_stop, stop),
            np.where(short, short_length, self.longest),
        )

    def _other(self, span: Array, length: Array, inside: Array, words: Array) -> tuple[Array, Array]:
        """Return the first token and the end of a run of sentences in another document, at least `length` tokens long.

        It is shorter only if that document is. With `inside` it starts within a sentence, as A's continuation would.
        """
        corpus, offsets = self.corpus, self.corpus.sentences.at
        own_first, own_end = self._document(self.spans[span])
        below = np.searchsorted(self.spans, own_first)
        own = np.searchsorted(self.spans, own_end) - below
        other = integers(words[:, _OTHER_SPAN], len(self.spans) - 1 - own)
        other += np.where(other >= below, own, 0)

        start, stop = self.spans[other], self.spans[other + 1]
        document_first, document_end = self._document(start)
        last_token = offsets(document_end)
        chosen = start + 1 + integers(words[:, _OTHER_START], np.maximum(stop - start - 1, 1))
        # Near the end of its document it starts earlier, to be long enough, but not with the document's first sentence:
        # a continuation never starts there.
        latest = corpus.sentences.last_up_to(np.maximum(last_token - length, 0))
        chosen = np.minimum(chosen, np.maximum(latest, document_first + 1))
        chosen = np.where(stop - start == 1, start, chosen)

        first_token = offsets(chosen)
        within = _within(first_token, offsets(chosen + 1), words[:, _OTHER_WITHIN])
        first_token = np.where(inside, within, first_token)
        end = corpus.sentences.first_from(np.minimum(first_token + length, last_token))
        return first_token, offsets(end)

    def _document(self, sentence: Array) -> tuple[Array, Array]:
        """Return the first sentence and the end of the documents that contain these sentences."""
        documents = self.corpus.documents
        number = documents.last_up_to(sentence)
        return documents.at(number), documents.at(number + 1)


def _within(start: Array, end: Array, words: Array) -> Array:
    """Return a random token of each run `start` to `end - 1`: not its first, unless it is the only one."""
    return np.minimum(start + 1 + integers(words, np.maximum(end - start - 1, 1)), end - 1)


def _coin(words: Array) -> Array:
    """Return 0 or 1 (int64) with equal probability."""
    return (words >> np.uint32(31)).astype(np.int64)


def _cuts(first: Array, second: Array, target: Array) -> tuple[Array, Array]:
    """Return how many tokens to cut from each of two segments, so that both together have at most `target`.

    The result is as if tokens were cut one by one from the longer segment, or from the second if both are equal.
    """
    excess = np.maximum(first + second - target, 0)
    uneven = np.minimum(excess, np.abs(first - second))
    both = excess - uneven
    from_first = np.where(first > second, uneven, 0) + both // 2
    return from_first, excess - from_first
