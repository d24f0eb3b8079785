"""The losses that counts of tokens attain: bigrams against a plain computation, and their file in the run's folder."""

import json
import math
from collections import Counter
from itertools import compress, pairwise

import numpy as np
import pytest

from lucid.data import HELD_OUT, Corpus, Sampler, SamplerSettings
from lucid.training.counts import losses, pieces
from lucid.training.counts.kept import COUNTS_FILE, KeptCounts
from lucid.training.counts.losses import Bigrams, bigram_loss, frequency_losses
from lucid.training.held_out import HeldOut

SAMPLES = 16


@pytest.fixture
def held_out(corpus_folder):
    training = Corpus.open(corpus_folder)
    sampler = Sampler(Corpus.open(corpus_folder, HELD_OUT), SamplerSettings(sequence_length=32), 0)
    return HeldOut("corpus", 1.0, sampler, training, frequency_losses(training), "")


def plain_losses(corpus, triples):
    """The losses of (left, right, token), from the formulas of `Bigrams` over the whole vocabulary."""
    tokens = corpus.tokens(np.arange(corpus.token_count)).tolist()
    documents = corpus.document_of(np.arange(corpus.token_count)).tolist()
    within = [first == second for first, second in pairwise(documents)]
    pairs = Counter(compress(pairwise(tokens), within))
    once, twice = (sum(count == number for count in pairs.values()) for number in (1, 2))
    discount = once / (once + 2 * twice)
    vocabulary = range(corpus.vocab_size)
    frequency = np.exp(-frequency_losses(corpus)).tolist()

    def given(neighbour, side):
        found = {pair[1 - side]: count for pair, count in pairs.items() if pair[side] == neighbour}
        total = sum(found.values())
        if not total:
            return frequency
        rest = discount * len(found) / total
        return [max(found.get(token, 0) - discount, 0) / total + rest * frequency[token] for token in vocabulary]

    for left, right, token in triples:
        after, before = given(left, 0), given(right, 1)
        products = [after[each] * before[each] / frequency[each] for each in vocabulary]
        yield -math.log(products[token] / sum(products))


def test_bigrams_predict_as_their_formula_says(held_out):
    batch = held_out.sampler.batch(0, range(SAMPLES))
    rows, columns = np.nonzero(batch.mlm_labels != -100)
    left, right = batch.input_ids[rows, columns - 1], batch.input_ids[rows, columns + 1]
    tokens = batch.mlm_labels[rows, columns]
    expected = list(plain_losses(held_out.training, zip(left.tolist(), right.tolist(), tokens.tolist(), strict=True)))
    bigrams = Bigrams.of(held_out.training, np.exp(-held_out.token_losses))
    np.testing.assert_allclose(bigrams.losses(left, right, tokens), expected, rtol=1e-9)
    assert bigram_loss(KeptCounts(), held_out, SAMPLES) == pytest.approx(sum(expected))


def test_between_tokens_that_tell_nothing_bigrams_are_token_frequencies(held_out):
    special = held_out.training.special_tokens
    tokens = np.arange(5, 50)
    left, right = np.full(len(tokens), special.mask), np.full(len(tokens), special.separator)
    bigrams = Bigrams.of(held_out.training, np.exp(-held_out.token_losses))
    np.testing.assert_allclose(bigrams.losses(left, right, tokens), held_out.token_losses[tokens])


def test_the_probabilities_of_all_tokens_add_up_to_one(held_out):
    frequencies = np.exp(-held_out.token_losses)
    tokens = np.arange(len(frequencies))
    common = int(frequencies.argmax())
    bigrams = Bigrams.of(held_out.training, frequencies)
    for left, right in ((common, common), (common, held_out.training.special_tokens.mask), (7, common)):
        losses = bigrams.losses(np.full(len(tokens), left), np.full(len(tokens), right), tokens)
        assert np.exp(-losses).sum() == pytest.approx(1)


def test_of_a_large_corpus_pieces_are_counted(held_out, monkeypatch):
    corpus = held_out.training
    monkeypatch.setattr(pieces, "_COUNTED", corpus.token_count // 2)
    monkeypatch.setattr(pieces, "_PLACES", 4)
    pairs = losses._pairs(corpus)
    assert corpus.token_count // 3 < len(pairs) < corpus.token_count // 2
    everything = set(pairwise(corpus.tokens(np.arange(corpus.token_count)).tolist()))
    assert {divmod(pair, corpus.vocab_size) for pair in pairs.tolist()} <= everything


@pytest.fixture
def computed(monkeypatch):
    """The numbers of samples of all computations."""
    calls = []
    real = losses._bigram_loss

    def counted(held_out, samples):
        calls.append(samples)
        return real(held_out, samples)

    monkeypatch.setattr(losses, "_bigram_loss", counted)
    return calls


def test_a_run_computes_the_loss_of_bigrams_once(held_out, tmp_path, computed):
    first = bigram_loss(KeptCounts(tmp_path), held_out, SAMPLES)
    assert bigram_loss(KeptCounts(tmp_path), held_out, SAMPLES) == first
    assert computed == [SAMPLES]
    assert bigram_loss(KeptCounts(tmp_path), held_out, SAMPLES // 2) < first
    assert computed == [SAMPLES, SAMPLES // 2]


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b'{"a": ', b'{"KEY": "1"}', b'{"KEY": NaN}', b'{"KEY": -1.0}', b"\xff"]
)
def test_a_damaged_file_is_computed_again(held_out, tmp_path, computed, content):
    expected = bigram_loss(KeptCounts(tmp_path), held_out, SAMPLES)
    [key] = json.loads((tmp_path / COUNTS_FILE).read_text())
    (tmp_path / COUNTS_FILE).write_bytes(content.replace(b"KEY", key.encode()))
    assert bigram_loss(KeptCounts(tmp_path), held_out, SAMPLES) == expected
    assert len(computed) == 2


def test_a_folder_that_cannot_be_written_is_no_error(held_out, tmp_path):
    (tmp_path / "file").touch()
    assert bigram_loss(KeptCounts(tmp_path / "file"), held_out, SAMPLES) > 0
