"""Chooses the two segments of each sample: their starts and lengths, and whether B follows A.

As in the original (Devlin et al. 2018, `create_pretraining_data.py`), B is either A's continuation or a run of tokens
from another document, with equal probability. Unlike there, nothing else in a pair should depend on its label: no
document forces a label, and a random B starts where a span could have been split and ends where a span would have
ended. Small differences remain, because documents end (`tests/data/test_pairs.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from lucid.backend import Array
from lucid.data.shards import Corpus
from lucid.data.spans import longest_span
from lucid.random import integers, uniform

# The number of random words for each sample: one for each choice below. One is unused, so that the others keep their
# places: single segments and true pairs are those of earlier versions.
WORDS = 10
# The first of them decide the length of a sample whose second segment is not random.
WORDS_OF_LENGTH = 3
_SHORT, _SHORT_LENGTH, _SHORT_START, _SPLIT, _LABEL = range(5)
_OTHER_SPAN, _OTHER_TOKEN, _UNUSED, _CUT_FIRST, _CUT_SECOND = range(5, WORDS)


@dataclass(frozen=True)
class SegmentPairs:
    """The first token and the length of both segments of B samples, and the NSP labels: int64 [B] each."""

    first_start: Array
    first_length: Array
    second_start: Array
    second_length: Array
    labels: Array

    @classmethod
    def joined(cls, parts: Sequence["SegmentPairs"]) -> "SegmentPairs":
        """Return the segments of all `parts`, one part after another."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


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
        other_start, other_end = self._other(span, split, end, target - (split - first_start), words)
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

    def expected_lengths(self, span: Array, words: Array) -> Array:
        """Return the tokens of the samples that `choose` or `choose_single` makes of these spans: int64 [B].

        `words` is uint32 [B, WORDS_OF_LENGTH] or wider. A random second segment is taken to be as long as the true one,
        which it is unless its sentences are longer or its document ends.
        """
        start, end, target = self._narrowed(span, words)
        return np.minimum(end - start, target)

    def spans_of(self, document: int) -> range:
        """Return the numbers of the spans of a document."""
        first, end = self.corpus.sentences.at(self.corpus.documents.at(np.array([document, document + 1]))).tolist()
        return range(*np.searchsorted(self.spans, [first, end]).tolist())

    def takes_randomly(self, document: int, span: Array, words: Array) -> Array:
        """Return bool [B]: for which arguments of `choose` B is a random run of tokens of this document."""
        wanted, found = self.spans_of(document), np.zeros(len(span), bool)
        random = np.flatnonzero(_coin(words[:, _LABEL]) == 1)
        other = self._other_number(span[random], words[random, _OTHER_SPAN])
        found[random] = (other >= wanted.start) & (other < wanted.stop)
        return found

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

    def _other(self, span: Array, split: Array, end: Array, room: Array, words: Array) -> tuple[Array, Array]:
        """Return the first token and the end of a run of another document's tokens, in place of `split` to `end`.

        It starts with a sentence, or within one, as the true continuation does. It ends where the span would end if the
        run followed A, by the rules of `find_spans`: with the sentence that fills the `room` after A, or within that
        sentence if the span would get too long. There are two exceptions. Where the true continuation starts within a
        sentence, the run ends within one if that does. Where the true continuation leaves room, because its document
        ends, the run ends with the sentence whose end is nearest to the same length.
        """
        at, first_from, length = self.corpus.sentences.at, self.corpus.sentences.first_from, end - split
        starts_inside = at(first_from(split)) > split
        needed = np.minimum(length, np.maximum(room, 1))
        start, document_end = self._other_start(span, needed, starts_inside, words)

        enough = np.minimum(start + needed, document_end)
        after = first_from(enough)
        previous = np.maximum(after - 1, first_from(start + 1))
        previous_is_nearer = enough - at(previous) < at(after) - enough
        whole_end = at(np.where((length < room) & previous_is_nearer, previous, after))

        before = split - self.spans[span]
        too_long = (before < self.longest) & (before + whole_end - start > longest_span(self.longest))
        ends_inside = np.where(starts_inside, at(first_from(end)) > end, too_long)
        within_end = np.minimum(start + np.where(starts_inside, length, self.longest - before), document_end)
        return start, np.where(ends_inside, within_end, whole_end)

    def _other_start(self, span: Array, needed: Array, inside: Array, words: Array) -> tuple[Array, Array]:
        """Return a first token in another document, and that document's end: `needed` tokens later, if it is as long.

        With `inside` it is a random token that starts no sentence. Else it starts the sentence after a random token;
        long sentences would be chosen too often if it started the one that holds the token. It never starts a document,
        as no continuation does, unless the document is one sentence.
        """
        sentences = self.corpus.sentences
        span_start, span_end = self._other_span(span, words[:, _OTHER_SPAN])
        token = span_start + integers(words[:, _OTHER_TOKEN], span_end - span_start)
        first, last = self._document(span_start)
        opening, end = sentences.at(first), sentences.at(last)
        latest = np.maximum(end - needed, opening)

        sentence = np.minimum(sentences.first_from(token + 1), sentences.last_up_to(latest))
        sentence = np.minimum(np.maximum(sentence, first + 1), last - 1)
        within = np.minimum(token, latest)
        within = np.minimum(within + (sentences.at(sentences.first_from(within)) == within), end - 1)
        return np.where(inside, within, sentences.at(sentence)), end

    def _other_span(self, span: Array, words: Array) -> tuple[Array, Array]:
        """Return the first token and the end of a random span of another document than the one of each `span`."""
        other = self._other_number(span, words)
        return self.spans[other], self.spans[other + 1]

    def _other_number(self, span: Array, words: Array) -> Array:
        """Return the number of a random span of another document than the one of each `span`."""
        own_first, own_end = self._document(self.spans[span])
        below = np.searchsorted(self.spans, self.corpus.sentences.at(own_first))
        own = np.searchsorted(self.spans, self.corpus.sentences.at(own_end)) - below
        other = integers(words, len(self.spans) - 1 - own)
        return other + np.where(other >= below, own, 0)

    def _boundaries_within(self, start: Array, end: Array) -> tuple[Array, Array]:
        """Return the number of the first boundary of sentences after each `start`, and how many lie before `end`."""
        first = self.corpus.sentences.first_from(start + 1)
        return first, self.corpus.sentences.first_from(end) - first

    def _document(self, token: Array) -> tuple[Array, Array]:
        """Return the first sentence and the end of the documents that contain these tokens."""
        number = self.corpus.document_of(token)
        return self.corpus.documents.at(number), self.corpus.documents.at(number + 1)


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
