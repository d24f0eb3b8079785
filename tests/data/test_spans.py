"""Spans tile the documents, and their samples hold every token, however long the sentences or the sequences are."""

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lucid.backend import Array
from lucid.data import Corpus, Sampler, SamplerSettings
from lucid.data.manifest import Manifest, Shard, Split, record_files
from lucid.data.pairs import WORDS, PairChooser
from lucid.data.spans import find_spans
from lucid.data.tokenizer import SpecialTokens
from lucid.kernels.masking import IGNORE_INDEX
from lucid.random import Coordinates, Purpose, random_words

SPECIAL = SpecialTokens(pad=0, unknown=1, classify=2, separator=3, mask=4)
LENGTHS = [5, 6, 7, 8, 16, 31, 64, 127, 128, 129, 200, 512]
LONG, SHORT = 128, 20
# The room for text in a sequence of 64 tokens.
LONGEST = 61

# Sentence lengths of a document that is kept: it has at least two tokens.
documents = st.lists(st.integers(1, LONG) | st.integers(1, SHORT), min_size=1, max_size=4).filter(
    lambda lengths: sum(lengths) > 1
)


def corpus_with(folder: Path, sentence_lengths: list[list[int]]) -> Corpus:
    """Return a corpus with a document for each list of lengths of sentences, in which no two tokens are equal."""
    lengths = np.concatenate(sentence_lengths)
    total = int(lengths.sum())
    arrays = {
        "train-0.tokens": np.arange(5, 5 + total, dtype=np.uint16),
        "train-0.sentences": np.cumsum([0, *lengths]),
        "train-0.documents": np.cumsum([0, *map(len, sentence_lengths)]),
        "train.frequencies": np.repeat([0, 1], [5, total]),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    shard = Shard("train-0", len(sentence_lengths), len(lengths), total)
    split = Split(shard.documents, shard.sentences, shard.tokens, (shard,))
    files = record_files(folder, [f"{name}.npy" for name in arrays])
    Manifest({}, {}, "", 5 + total, asdict(SPECIAL), {"train": split}, files).write(folder)
    return Corpus.open(folder)


def reached(corpus: Corpus, sampler: Sampler, epochs: int) -> Array:
    """Return int64 [tokens of the corpus]: how many samples of the first `epochs` hold each token."""
    batch = sampler.batch(0, range(epochs * sampler.samples_per_epoch))
    ids = np.where(batch.mlm_labels == IGNORE_INDEX, batch.input_ids, batch.mlm_labels)
    return np.bincount(ids.reshape(-1), minlength=corpus.vocab_size)[5:]


@pytest.mark.parametrize("nsp", [True, False])
@given(
    lengths=st.lists(documents, min_size=2, max_size=3),
    sequence_length=st.sampled_from(LENGTHS),
    short=st.sampled_from([0.0, 0.1, 0.5]),
    packing=st.booleans(),
)
@settings(max_examples=25)
def test_every_token_reaches_a_sample(
    nsp: bool, lengths: list[list[int]], sequence_length: int, short: float, packing: bool
) -> None:
    with TemporaryDirectory() as folder:
        corpus = corpus_with(Path(folder), lengths)
        chosen = SamplerSettings(sequence_length, short_sequence_probability=short, nsp=nsp, packing=packing)
        # By chance a token misses an epoch four times in five at most.
        assert reached(corpus, Sampler(corpus, chosen, 1), 60).min() > 0


@given(
    lengths=st.lists(documents, min_size=1, max_size=5),
    sequence_length=st.sampled_from(LENGTHS),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40)
def test_an_epoch_without_short_samples_leaves_out_less_than_a_third_at_the_ends_of_spans(
    lengths: list[list[int]], sequence_length: int, seed: int
) -> None:
    with TemporaryDirectory() as folder:
        corpus = corpus_with(Path(folder), lengths)
        chosen = SamplerSettings(sequence_length, short_sequence_probability=0, nsp=False)
        sampler = Sampler(corpus, chosen, seed)
        count = reached(corpus, sampler, 1)
        assert count.max() == 1
        assert (count == 0).mean() <= 1 / 3
        # The two ends of a span are left out in turn, never its middle.
        left_out = np.diff(np.flatnonzero(np.diff(count, prepend=1, append=1)))[::2]
        assert left_out.max(initial=0) <= 2 * ((sequence_length - 2) // 2)


@pytest.mark.parametrize("sequence_length", [16, 64, 100])
def test_an_epoch_has_all_of_a_long_text_without_sentences(tmp_path: Path, sequence_length: int) -> None:
    corpus = corpus_with(tmp_path, [[LONG] * 60, [LONG] * 30])
    chosen = SamplerSettings(sequence_length, short_sequence_probability=0, nsp=False)
    assert (reached(corpus, Sampler(corpus, chosen, 1), 1) == 1).mean() > 0.95


def test_within_sentences_a_random_segment_starts_and_ends_as_a_true_one_does(tmp_path: Path) -> None:
    corpus = corpus_with(tmp_path, [[150, 171], [400], [130, 3, 150], [99, 200]])
    spans = find_spans(corpus, LONGEST)
    full = np.flatnonzero(np.diff(spans) == LONGEST)
    span = np.resize(full, 20_000)
    words = random_words(Purpose.PAIR, Coordinates.of(1, 0, np.arange(20_000)), WORDS)
    pairs = PairChooser(corpus, spans, LONGEST, 0.0).choose(span, words)
    assert abs(pairs.labels.mean() - 0.5) < 0.02
    assert (pairs.first_length + pairs.second_length == LONGEST).all()
    boundaries = corpus.sentences.at(np.arange(corpus.sentence_count + 1))
    first_is_whole = np.isin(pairs.first_start + pairs.first_length, boundaries)
    second_is_whole = np.isin(pairs.second_start, boundaries)
    assert 0.1 < first_is_whole.mean() < 0.5
    assert (first_is_whole == second_is_whole).all()


def test_spans_tile_the_documents_and_have_two_sentences_if_the_document_does(corpus: Corpus) -> None:
    spans = find_spans(corpus, LONGEST)
    documents = corpus.documents.at(np.arange(corpus.document_count + 1))
    starts = corpus.sentences.at(documents)
    assert set(starts.tolist()) <= set(spans.tolist())
    sizes, last = np.diff(spans), np.isin(spans[1:], starts)
    ends = corpus.sentences.first_from(spans[1:])
    whole = corpus.sentences.at(ends) == spans[1:]
    sentences = ends - corpus.sentences.last_up_to(spans[:-1])
    single = np.isin(spans[:-1], starts[:-1][np.diff(documents) == 1])
    starts_whole = np.isin(spans[:-1], corpus.sentences.at(np.arange(corpus.sentence_count + 1)))
    assert (sentences[~single & starts_whole & whole] >= 2).all()
    assert (sentences[single] == 1).all()
    # All but the last span of a document fill a sequence. With whole sentences, none goes on after it is full, but for
    # a lone sentence.
    assert (sizes[~last] >= LONGEST).all()
    before_end = corpus.sentences.at(ends - 1) - spans[:-1]
    assert (before_end < LONGEST)[~last & whole & (sentences > 2)].all()
    # A span within sentences is as long as a sequence, and there are few.
    assert sizes.max() <= LONGEST + LONGEST // 2
    assert (sizes[~whole] == LONGEST).all()
    assert 0 < (~whole).mean() < 0.1


def test_spans_do_not_depend_on_how_many_documents_are_cut_at_once(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = find_spans(corpus, 40)
    monkeypatch.setattr("lucid.data.spans._DOCUMENTS_AT_ONCE", 7)
    assert (find_spans(corpus, 40) == together).all()
