"""Makes the training samples. Each is a pure function of the seed and of the sample's number in the run.

A sampler keeps no state between calls. So a run continues at any sample without replaying others, and every rank
computes its own samples of the global batch, whatever the number of ranks.
"""

from dataclasses import dataclass, replace

import numpy as np

from lucid.backend import Array
from lucid.data.batch import Batch
from lucid.data.manifest import TOKENIZER_FOLDER
from lucid.data.packing import Packing, packed
from lucid.data.pairs import WORDS, WORDS_OF_LENGTH, PairChooser, SegmentPairs
from lucid.data.permutation import Permutation
from lucid.data.shards import Corpus
from lucid.data.spans import find_spans
from lucid.data.tokenizer import continuing_tokens, load_tokenizer
from lucid.errors import DataError
from lucid.kernels.masking import IGNORE_INDEX, Masking, mask_tokens
from lucid.random import Coordinates, Purpose, random_words


@dataclass(frozen=True)
class SamplerSettings:
    """How samples are made.

    `mlm_probability` is the fraction of the tokens to predict, of a batch that asks for no smaller one.
    `max_predictions` bounds the masked tokens of a sample; None means round(mlm_probability * sequence_length) + 1.
    With `whole_word_mask` the pieces of a word are masked together or not at all.

    Without `nsp` a sample is one segment of one document, its token types are 0 and its NSP label is `IGNORE_INDEX`.
    This is RoBERTa's DOC-SENTENCES (Liu et al. 2019) with two differences: a sentence that does not fit is cut instead
    of moved to the next sample, and short samples at the ends of documents do not make batches larger. RoBERTa also has
    no short samples elsewhere: `short_sequence_probability` 0.

    With `packing` a sample consists of several such sequences, as many as `sequence_length` has room for.
    """

    sequence_length: int = 128
    short_sequence_probability: float = 0.1
    mlm_probability: float = 0.15
    max_predictions: int | None = None
    mask_replace_probability: float = 0.8
    random_replace_probability: float = 0.1
    whole_word_mask: bool = False
    nsp: bool = True
    packing: bool = False

    @property
    def special_count(self) -> int:
        """The number of [CLS] and [SEP] tokens in a sequence."""
        return 3 if self.nsp else 2


class Sampler:
    """Makes samples of `corpus`, drawn from `seed`. Raises `DataError` if the corpus is too small for them."""

    def __init__(self, corpus: Corpus, settings: SamplerSettings, seed: int) -> None:
        longest = settings.sequence_length - settings.special_count
        if longest < 2:
            raise DataError(f"sequence_length {settings.sequence_length} leaves no room for text: take 5 or more")
        if settings.nsp and corpus.document_count < 2:
            raise DataError(
                f"{corpus.folder} has one document in its split {corpus.split!r}, and a random next segment needs "
                "another: prepare more documents (a blank line separates them in .txt), or switch NSP off"
            )
        self.corpus, self._settings, self._seed = corpus, settings, seed
        spans = find_spans(corpus, longest)
        self._sequences_per_epoch = self.samples_per_epoch = len(spans) - 1
        self._pairs = PairChooser(corpus, spans, longest, settings.short_sequence_probability)
        maximum = settings.max_predictions
        self._masking = Masking(
            mask_token_id=corpus.special_tokens.mask,
            vocab_size=corpus.vocab_size,
            max_predictions=round(settings.mlm_probability * settings.sequence_length) + 1
            if maximum is None
            else maximum,
            probability=settings.mlm_probability,
            replace_probability=settings.mask_replace_probability,
            random_probability=settings.random_replace_probability,
            ignore_index=IGNORE_INDEX,
        )
        self._is_special = np.isin(np.arange(corpus.vocab_size), corpus.special_tokens.ids)
        self._continuing = _continuing_tokens(corpus) if settings.whole_word_mask else None
        self._packing = None
        if settings.packing:
            self._packing = Packing(self._lengths, self._sequences_per_epoch, settings.sequence_length)
            self.samples_per_epoch = self._packing.rows_per_epoch

    @property
    def index_bytes(self) -> int:
        """The memory that a sampler takes, besides the corpus: the place of each span."""
        return self._pairs.spans.nbytes

    def batch(self, consumed: int, samples: range | Array, mlm_probability: float | None = None) -> Batch:
        """Return these `samples` (rising, int64) of the global batch that begins after `consumed` samples of the run.

        Sample i of the batch is sample g = consumed + i of the run: sample g % samples_per_epoch of epoch
        g // samples_per_epoch. If `mlm_probability` is given, it replaces the one in the settings, and must not be
        larger. Raises `DataError` if the corpus has changed since it was opened.
        """
        indices = np.asarray(samples, np.int64)
        return self.batch_of(consumed + indices, indices, mlm_probability)

    def batch_of(self, numbers: Array, samples: Array, mlm_probability: float | None = None) -> Batch:
        """Return the samples of the run with these rising `numbers`, int64 [B].

        `samples`, int64 [B], are their indices in the global batch. `mlm_probability` and errors are those of `batch`.
        """
        probability = self._settings.mlm_probability if mlm_probability is None else mlm_probability
        masking = replace(self._masking, probability=probability)
        self.corpus.check_unchanged()
        epochs, indices = self.locate(numbers)
        # Epochs follow each other, because the numbers rise.
        parts = [(epoch, epochs == epoch) for epoch in np.unique(epochs).tolist()]
        return Batch.joined([self._part(epoch, indices[part], samples[part], masking) for epoch, part in parts])

    def locate(self, numbers: Array) -> tuple[Array, Array]:
        """Return the epoch of each of these samples of the run, and its index in the epoch: int64 [B] each."""
        epochs, indices = np.divmod(numbers, self.samples_per_epoch)
        return epochs, indices

    def segments(self, numbers: Array) -> tuple[SegmentPairs, Array]:
        """Return the segments of the sequences in these samples of the run (rising, int64 [B]): where their text lies.

        The second array, int64 [S], which rises, says in which element of `numbers` each sequence is. The order is that
        of `Batch.nsp_labels`.
        """
        epochs, indices = self.locate(numbers)
        parts, element = [], []
        for epoch in np.unique(epochs).tolist():
            here = np.flatnonzero(epochs == epoch)
            sequences, row = self._sequences_in(epoch, indices[here])
            parts.append(self._segments(epoch, sequences))
            element.append(here[row])
        return SegmentPairs.joined(parts), np.concatenate(element)

    def expected_lengths(self, numbers: Array) -> Array:
        """Return about how many tokens each of these samples of the run has, without packing: int64 [B], as `numbers`.

        Special tokens are included. Of pairs with a random second segment some are longer or shorter; all others are
        exact. No text is read, so this takes a hundredth of the time of making the samples.
        """
        epochs, indices = self.locate(numbers)
        lengths = np.empty(len(numbers), np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            lengths[here] = self._pairs.expected_lengths(*self._drawn(epoch, indices[here], WORDS_OF_LENGTH))
        return lengths + self._settings.special_count

    def samples_from(self, document: int, epoch: int) -> Array:
        """Return the indices in an epoch, rising, of the samples that are made of this document of the corpus.

        It is their first segment, and the second if that follows. Packing may leave a few samples out of an epoch.
        """
        spans = np.array(self._pairs.spans_of(document))
        indices = Permutation(self._sequences_per_epoch, self._seed, epoch).places(spans)
        if self._packing is not None:
            indices = self._packing.rows_of(epoch, indices)
        return np.unique(indices[indices >= 0])

    def takes_randomly(self, document: int, epoch: int, indices: Array) -> Array:
        """Return bool [B]: which samples of an epoch (rising, [B]) have a random second segment from this document.

        Only drawing the segments of each sample finds them: two million samples a second, a tenth of that with packing.
        """
        sequences, row = self._sequences_in(epoch, indices)
        found = np.zeros(len(indices), bool)
        if self._settings.nsp:
            found[row[self._pairs.takes_randomly(document, *self._drawn(epoch, sequences))]] = True
        return found

    def _sequences_in(self, epoch: int, indices: Array) -> tuple[Array, Array]:
        """Return the sequences in these samples of an epoch, and which element of `indices` each is in."""
        if self._packing is None:
            return indices, np.arange(len(indices))
        return self._packing.sequences_in(epoch, indices)

    def _part(self, epoch: int, indices: Array, samples: Array, masking: Masking) -> Batch:
        """Return the samples with these `indices` in an epoch; `samples` are their indices in the global batch."""
        sequences, row = self._sequences_in(epoch, indices)
        batch = self._sequences(epoch, sequences, samples[row], masking)
        return batch if self._packing is None else packed(batch, row, self.corpus.special_tokens.pad)

    def _sequences(self, epoch: int, indices: Array, samples: Array, masking: Masking) -> Batch:
        """Return the sequences with these indices in an epoch, one a row."""
        segments = self._segments(epoch, indices)
        input_ids, attention_mask, second, candidates = self._laid_out(segments)
        continues_word = self._continues_word(input_ids)
        lengths, coordinates = attention_mask.sum(axis=1), Coordinates.of(self._seed, epoch, indices)
        masked, labels = mask_tokens(input_ids, candidates, lengths, masking, coordinates, continues_word)
        nsp_labels = segments.labels if self._settings.nsp else np.full(len(indices), IGNORE_INDEX)
        types, numbers = second.astype(np.int32), attention_mask.astype(np.int32)
        return Batch(masked, numbers, types, labels, nsp_labels.astype(np.int32), samples)

    def _continues_word(self, input_ids: Array) -> Array | None:
        """Return bool [B, T]: which tokens belong to the word of the one before; None without whole words."""
        if self._continuing is None:
            return None
        continuing, ending = self._continuing
        continues = continuing[input_ids]
        continues[:, 1:] &= ~ending[input_ids[:, :-1]]
        return continues

    def _segments(self, epoch: int, indices: Array) -> SegmentPairs:
        """Return the segments of the sequences with these indices in an epoch."""
        return (self._pairs.choose if self._settings.nsp else self._pairs.choose_single)(*self._drawn(epoch, indices))

    def _drawn(self, epoch: int, indices: Array, words: int = WORDS) -> tuple[Array, Array]:
        """Return the spans of the sequences with these indices in an epoch, and the random words for their segments."""
        spans = Permutation(self._sequences_per_epoch, self._seed, epoch).at(indices)
        return spans, random_words(Purpose.PAIR, Coordinates.of(self._seed, epoch, indices), words)

    def _lengths(self, epoch: int, indices: Array) -> Array:
        """Return the lengths (int64) of the sequences with these indices in an epoch."""
        segments = self._segments(epoch, indices)
        return segments.first_length + segments.second_length + self._settings.special_count

    def _laid_out(self, segments: SegmentPairs) -> tuple[Array, Array, Array, Array]:
        """Return ids and three masks, all [B, T]: not padding, second segment, may be masked."""
        special, column = self.corpus.special_tokens, np.arange(self._settings.sequence_length)
        first_end = 1 + segments.first_length[:, None]
        second_end = first_end + 1 + segments.second_length[:, None]
        end = second_end + 1 if self._settings.nsp else second_end
        in_first = (column >= 1) & (column < first_end)
        in_second = (column > first_end) & (column < second_end)

        # Special tokens and padding, too, look up some token of the corpus, which is overwritten afterwards.
        shift = np.where(
            column > first_end, segments.second_start[:, None] - first_end - 1, segments.first_start[:, None] - 1
        )
        positions = np.clip(column + shift, 0, self.corpus.token_count - 1)
        tokens = self.corpus.tokens(positions)
        text = in_first | in_second
        ids = np.where(text, tokens, np.where(column < end, np.int32(special.separator), np.int32(special.pad)))
        ids[:, 0] = special.classify
        candidates = text & ~self._is_special[ids]
        return ids, np.broadcast_to(column, ids.shape) < end, (column > first_end) & (column < end), candidates


def _continuing_tokens(corpus: Corpus) -> tuple[Array, Array]:
    """Return the `continuing_tokens` of the corpus."""
    continuing, ending = continuing_tokens(load_tokenizer(corpus.folder / TOKENIZER_FOLDER))
    if len(continuing) != corpus.vocab_size:
        raise DataError(
            f"{corpus.folder} has a tokenizer of {len(continuing)} tokens, but its manifest says {corpus.vocab_size}: "
            "prepare the corpus again"
        )
    return continuing, ending
