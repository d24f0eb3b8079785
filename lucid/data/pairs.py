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
from lucid.data.spans import longest_span
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
    """Chooses segments from the spans of a corpus (`find_spans`). A pair has at most `longest` tokens."""

    corpus: Corpus
    spans: Array
    longest: int
    short_sequence_probability: float

    def choose(self, span: Array, words: Array) -> SegmentPairs:
        """Return the segments of the spans numbered `span` [B], drawn from the random `words` (uint32 [B, WORDS])."""
        first_start, end, target = self._narrowed(span, words)
        boundary, count = self._boundaries_within(first_start, end)
        inside = count == 0
        between = self.corpus.sentences.at(boundary + integers(words[:, _SPLIT], np.maximum(count, 1)))
        split = np.where(inside, _within(first_start, end, words[:, _SPLIT]), between)

        labels = _coin(words[:, _LABEL])
        other_start, other_end = self._other(span, first_start, split, end, words)
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
        first_start, end, target = self._narrowed(span, words)
        length = end - first_start
        cut = np.maximum(length - target, 0)
        nothing = np.zeros_like(span)
        return SegmentPairs(first_start + cut * _coin(words[:, _CUT_FIRST]), length - cut, nothing, nothing, nothing)

    def _narrowed(self, span: Array, words: Array) -> tuple[Array, Array, Array]:
        """Return the first token, the end and the allowed tokens of each span, narrowed to a part if it is short."""
        start, end = self.spans[span], self.spans[span + 1]
        short = uniform(words[:, _SHORT]) < self.short_sequence_probability
        short_length = 2 + integers(words[:, _SHORT_LENGTH], self.longest - 1)
        sentences = self.corpus.sentences
        boundary, count = self._boundaries_within(start, end)
        # The part starts with the span or at a boundary within it, but the last, and has two sentences if the span has.
        skipped = integers(words[:, _SHORT_START], np.maximum(count, 1))
        short_start = np.where(skipped > 0, sentences.at(boundary + skipped - 1), start)
        enough = sentences.first_from(np.minimum(short_start + short_length, end))
        short_stop = np.minimum(np.maximum(enough, boundary + skipped + 1), boundary + count)
        return (
            np.where(short, short_start, start),
            np.where(short, np.minimum(sentences.at(short_stop), end), end),
            np.where(short, short_length, self.longest),
        )

    def _other(self, span: Array, first_start: Array, split: Array, end: Array, words: Array) -> tuple[Array, Array]:
        """Return the first token and the end of a run of another document's tokens, in place of `split` to `end`.

        It starts with a sentence where the true continuation does, and else within one. It ends with a sentence, unless
        the true continuation ends within one, or the pair would have more tokens than a span. It is shorter than the
        true continuation only where its document ends.
        """
        at, first_from, length = self.corpus.sentences.at, self.corpus.sentences.first_from, end - split
        start, stop = self._other_span(span, words[:, _OTHER_SPAN])
        boundary, count = self._boundaries_within(start, stop)
        document_first, document_end = self._document(start)
        last_token = at(document_end)
        chosen = boundary + integers(words[:, _OTHER_START], np.maximum(count, 1))
        # Near the end of its document it starts earlier, to be long enough, but not with the document's first sentence:
        # a continuation never starts there.
        latest = self.corpus.sentences.last_up_to(np.maximum(last_token - length, 0))
        chosen = np.minimum(chosen, np.maximum(latest, document_first + 1))
        chosen = np.minimum(chosen, document_end - 1)

        sentence, sentence_end = at(chosen), at(chosen + 1)
        around = np.where(count > 0, sentence, start), np.where(count > 0, sentence_end, stop)
        within = _within(*around, words[:, _OTHER_WITHIN])
        inside = at(first_from(split)) > split
        first_token = np.where(inside, within, sentence)
        whole_end = at(first_from(np.minimum(first_token + length, last_token)))
        too_long = split - first_start + whole_end - first_token > longest_span(self.longest)
        exact = too_long | (at(first_from(end)) > end)
        latest_within = np.maximum(last_token - length, at(document_first) + 1)
        first_token = np.where(exact & inside, np.minimum(first_token, latest_within), first_token)
        return first_token, np.where(exact, np.minimum(first_token + length, last_token), whole_end)

    def _other_span(self, span: Array, words: Array) -> tuple[Array, Array]:
        """Return the first token and the end of a random span of another document than the one of each `span`."""
        own_first, own_end = self._document(self.spans[span])
        below = np.searchsorted(self.spans, self.corpus.sentences.at(own_first))
        own = np.searchsorted(self.spans, self.corpus.sentences.at(own_end)) - below
        other = integers(words, len(self.spans) - 1 - own)
        other += np.where(other >= below, own, 0)
        return self.spans[other], self.spans[other + 1]

    def _boundaries_within(self, start: Array, end: Array) -> tuple[Array, Array]:
        """Return the number of the first boundary of sentences after each `start`, and how many lie before `end`."""
        first = self.corpus.sentences.first_from(start + 1)
        return first, self.corpus.sentences.first_from(end) - first

    def _document(self, token: Array) -> tuple[Array, Array]:
        """Return the first sentence and the end of the documents that contain these tokens."""
        documents = self.corpus.documents
        number = documents.last_up_to(self.corpus.sentences.last_up_to(token))
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
