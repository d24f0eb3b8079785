"""Makes the training samples: a pure function of the seed and of the sample's number in the run.

Nothing is remembered between calls, so a run goes on at any sample at once, and every rank computes its own rows of
the global batch, whatever the number of ranks.
"""

from dataclasses import dataclass

import numpy as np

from lucid.backend import Array
from lucid.data.batch import Batch
from lucid.data.manifest import TOKENIZER_FOLDER
from lucid.data.packing import Packing, packed
from lucid.data.pairs import WORDS, PairChooser, Segments
from lucid.data.permutation import Permutation
from lucid.data.shards import Corpus
from lucid.data.spans import find_spans
from lucid.data.tokenizer import continuing_tokens, load_tokenizer
from lucid.errors import DataError
from lucid.kernels.masking import IGNORE_INDEX, Masking, mask_tokens
from lucid.random import Coordinates, Purpose, random_words


@dataclass(frozen=True)
class SamplerSettings:
    """What a sample is.

    `max_predictions` bounds the masked tokens of a sample; None is round(mlm_probability * sequence_length) + 1. With
    `whole_word_mask` the pieces of a word are masked together or not at all.

    Without `nsp` a sample is one segment of one document, its token types are 0 and its NSP label is `IGNORE_INDEX`:
    the DOC-SENTENCES of RoBERTa (Liu et al. 2019), but that the sentence which overflows is cut, not left to the next
    sample, and that samples near a document's end are not made up for by more of them. RoBERTa also has no short ones:
    `short_sequence_probability` 0.

    With `packing` a sample is several of all these, each a sequence of its own, as many as `sequence_length` has room
    for.
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
        """How many tokens of a full sample are [CLS] or [SEP]."""
        return 3 if self.nsp else 2


class Sampler:
    """Samples of `corpus`, drawn with `seed`. Raises `DataError` if the corpus cannot give such samples."""

    def __init__(self, corpus: Corpus, settings: SamplerSettings, seed: int) -> None:
        longest = settings.sequence_length - settings.special_count
        if longest < 2:
            raise DataError(f"sequence_length {settings.sequence_length} leaves no room for text: take 5 or more")
        if settings.nsp and corpus.document_count < 2:
            raise DataError(
                f"{corpus.folder} has one document in its split {corpus.split!r}, and a random next segment needs "
                "another: prepare more documents (a blank line separates them in .txt), or switch NSP off"
            )
        self._corpus, self._settings, self._seed = corpus, settings, seed
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
        self._continues_word = _continuing_tokens(corpus) if settings.whole_word_mask else None
        self._packing = None
        if settings.packing:
            self._packing = Packing(self._lengths, self._sequences_per_epoch, settings.sequence_length)
            self.samples_per_epoch = self._packing.rows_per_epoch

    def batch(self, consumed: int, rows: range) -> Batch:
        """Return the rows `rows` of the global batch that begins after `consumed` samples of the run.

        Row i is sample number g = consumed + i: sample g % samples_per_epoch of epoch g // samples_per_epoch.
        Raises `DataError` if the corpus has changed since it was opened.
        """
        self._corpus.check_unchanged()
        samples = np.arange(rows.start, rows.stop, rows.step, dtype=np.int64)
        epochs, places = np.divmod(consumed + samples, self.samples_per_epoch)
        # The rows of one epoch stand side by side, as g rises with the row.
        firsts = np.flatnonzero(np.diff(epochs, prepend=-1)).tolist()
        pieces = [slice(first, stop) for first, stop in zip(firsts, [*firsts[1:], len(samples)], strict=True)]
        return Batch.joined([self._part(int(epochs[piece.start]), places[piece], samples[piece]) for piece in pieces])

    def _part(self, epoch: int, places: Array, samples: Array) -> Batch:
        """Return the batch of the samples that stand at `places` of an epoch."""
        if self._packing is None:
            return self._sequences(epoch, places, samples)
        places, row = self._packing.sequences_in(epoch, places)
        return packed(self._sequences(epoch, places, samples[row]), row, self._corpus.special_tokens.pad)

    def _sequences(self, epoch: int, places: Array, samples: Array) -> Batch:
        """Return the sequences that stand at `places` of an epoch, one a row."""
        segments = self._segments(epoch, places)
        input_ids, attention_mask, second, candidates = self._laid_out(segments)
        continues_word = None if self._continues_word is None else self._continues_word[input_ids]
        lengths, coordinates = attention_mask.sum(axis=1), Coordinates.of(self._seed, epoch, places)
        masked, labels = mask_tokens(input_ids, candidates, lengths, self._masking, coordinates, continues_word)
        nsp_labels = segments.labels if self._settings.nsp else np.full(len(places), IGNORE_INDEX)
        types, numbers = second.astype(np.int32), attention_mask.astype(np.int32)
        return Batch(masked, numbers, types, labels, nsp_labels.astype(np.int32), samples)

    def _segments(self, epoch: int, places: Array) -> Segments:
        """Return the segments of the sequences that stand at `places` of an epoch."""
        spans = Permutation(self._sequences_per_epoch, self._seed, epoch).at(places)
        words = random_words(Purpose.PAIR, Coordinates.of(self._seed, epoch, places), WORDS)
        return (self._pairs.choose if self._settings.nsp else self._pairs.choose_single)(spans, words)

    def _lengths(self, epoch: int, places: Array) -> Array:
        """Return the lengths, int64, of the sequences that stand at `places` of an epoch."""
        segments = self._segments(epoch, places)
        return segments.first_length + segments.second_length + self._settings.special_count

    def _laid_out(self, segments: Segments) -> tuple[Array, Array, Array, Array]:
        """Return, all [B, T]: ids, where there is no padding, where the second segment is, what may be masked."""
        special, column = self._corpus.special_tokens, np.arange(self._settings.sequence_length)
        first_end = 1 + segments.first_length[:, None]
        second_end = first_end + 1 + segments.second_length[:, None]
        end = second_end + 1 if self._settings.nsp else second_end
        in_first = (column >= 1) & (column < first_end)
        in_second = (column > first_end) & (column < second_end)

        # Places of special tokens and padding look up some token of the corpus too, and are then written over.
        shift = np.where(
            column > first_end, segments.second_start[:, None] - first_end - 1, segments.first_start[:, None] - 1
        )
        positions = np.clip(column + shift, 0, self._corpus.token_count - 1)
        tokens = self._corpus.tokens(positions)
        text = in_first | in_second
        ids = np.where(text, tokens, np.where(column < end, np.int32(special.separator), np.int32(special.pad)))
        ids[:, 0] = special.classify
        candidates = text & ~self._is_special[ids]
        return ids, np.broadcast_to(column, ids.shape) < end, (column > first_end) & (column < end), candidates


def _continuing_tokens(corpus: Corpus) -> Array:
    """Return bool [V]: which tokens of the corpus go on with the word of the token before them."""
    continuing = continuing_tokens(load_tokenizer(corpus.folder / TOKENIZER_FOLDER))
    if len(continuing) != corpus.vocab_size:
        raise DataError(
            f"{corpus.folder} has a tokenizer of {len(continuing)} tokens, but says that they are {corpus.vocab_size}: "
            "prepare the corpus again"
        )
    return continuing
