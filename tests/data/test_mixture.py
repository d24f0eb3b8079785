"""A mixture takes each sample of each corpus once, in exact shares, whatever is asked for first."""

from collections import Counter
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts import made_up_text

from lucid.data import Batch, Corpus, Mixture, Sampler, SamplerSettings
from lucid.data.mixture import seeds_of, shares_of
from lucid.errors import DataError
from lucid.kernels.masking import IGNORE_INDEX
from lucid.preparation import prepare

SETTINGS = SamplerSettings(sequence_length=64)


@pytest.fixture(scope="module")
def other(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Another corpus with the tokenizer of `corpus`."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "text.txt").write_text(made_up_text(40, seed=2), encoding="utf-8")
    prepare([folder / "text.txt"], folder / "corpus", tokenizer=corpus.tokenizer_folder, held_out=0)
    return Corpus.open(folder / "corpus")


def samplers_of(corpora: list[Corpus], settings: SamplerSettings = SETTINGS, seed: int = 5) -> list[Sampler]:
    seeds = seeds_of(seed, len(corpora))
    return [Sampler(corpus, settings, seed) for corpus, seed in zip(corpora, seeds, strict=True)]


def mixture_of(corpora: list[Corpus], weights: list[float], settings: SamplerSettings = SETTINGS) -> Mixture:
    return Mixture(samplers_of(corpora, settings), weights, seed=5)


def assert_equal(batch: Batch, other: Batch) -> None:
    for field in fields(Batch):
        assert np.array_equal(getattr(batch, field.name), getattr(other, field.name)), field.name


weights_of_corpora = st.lists(st.floats(1e-2, 1e2), min_size=1, max_size=5)


@given(weights=weights_of_corpora, seed=st.integers(0, 2**63 - 1), count=st.integers(1, 4000))
def test_a_run_has_every_sample_of_a_corpus_once_and_in_order(
    corpus: Corpus, weights: list[float], seed: int, count: int
) -> None:
    mixture = Mixture([Sampler(corpus, SETTINGS, seed=1)] * len(weights), weights, seed)
    corpora, numbers = mixture.choose(np.arange(count))
    for index in range(len(weights)):
        own = numbers[corpora == index]
        assert own.tolist() == list(range(len(own)))


@pytest.mark.parametrize("weights", [[1, 1], [3, 1], [0.7, 0.2, 0.1], [1, 1, 1], [2000, 1]])
def test_shares_are_exact_to_one_sample_after_each_block(corpus: Corpus, weights: list[float]) -> None:
    mixture = Mixture([Sampler(corpus, SETTINGS, seed=1)] * len(weights), weights, seed=3)
    block = 2048 if max(weights) == 2000 else 1024
    corpora, _ = mixture.choose(np.arange(10 * block))
    for blocks in range(1, 11):
        counts = Counter(corpora[: blocks * block].tolist())
        for index, share in enumerate(mixture.shares):
            assert abs(counts[index] - blocks * block * share) < 1
    # Within a block the corpora take no regular turns.
    first = corpora[:block]
    assert len({tuple(first[start : start + 8].tolist()) for start in range(0, block, 8)}) > 2


@given(numbers=st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_a_sample_is_found_by_its_number_alone(corpus: Corpus, numbers: list[int]) -> None:
    mixture = Mixture([Sampler(corpus, SETTINGS, seed=1)] * 3, [5, 1, 3], seed=2)
    together = np.array(mixture.choose(np.array(numbers)))
    alone = [np.array(mixture.choose(np.array([number]))) for number in numbers]
    assert np.array_equal(together, np.concatenate(alone, axis=1))
    fresh = Mixture([Sampler(corpus, SETTINGS, seed=1)] * 3, [5, 1, 3], seed=2)
    assert np.array_equal(np.array(fresh.choose(np.array(numbers[::-1])))[:, ::-1], together)


@given(weights=weights_of_corpora, numbers=st.lists(st.integers(0, 10**12), min_size=1, max_size=3))
def test_the_sample_of_a_corpus_is_found_in_the_run(corpus: Corpus, weights: list[float], numbers: list[int]) -> None:
    mixture = Mixture([Sampler(corpus, SETTINGS, seed=1)] * len(weights), weights, seed=2)
    for number, own, place in zip(numbers, *mixture.choose(np.array(numbers))[::-1], strict=True):
        assert mixture.numbers_in_run(int(place), np.array([own])).tolist() == [number]


def test_weights_count_as_they_are_written() -> None:
    assert shares_of([0.3, 0.1, 1e-1]) == shares_of([3, 1, 1]) == [Fraction(3, 5), Fraction(1, 5), Fraction(1, 5)]


def test_another_seed_mixes_in_another_order(corpus: Corpus) -> None:
    sampler = Sampler(corpus, SETTINGS, seed=1)
    orders = [Mixture([sampler] * 2, [1, 1], seed).choose(np.arange(3072))[0].reshape(3, 1024) for seed in (0, 1)]
    assert len({order.tobytes() for blocks in orders for order in blocks}) == 6


KINDS = (
    SETTINGS,
    replace(SETTINGS, nsp=False),
    replace(SETTINGS, packing=True),
    replace(SETTINGS, packing=True, whole_word_mask=True),
)


@pytest.mark.parametrize("settings", KINDS)
def test_a_batch_has_the_samples_that_its_corpora_make_alone(
    corpus: Corpus, other: Corpus, settings: SamplerSettings
) -> None:
    mixture, start = mixture_of([corpus, other], [2, 1], settings), 1000  # beyond the end of a block, and of an epoch
    assert start > mixture.samplers[1].samples_per_epoch
    batch = mixture.batch(start, range(48))
    corpora, numbers = mixture.choose(start + np.arange(48))
    assert set(corpora.tolist()) == {0, 1}
    for sample in range(48):
        own = mixture.samplers[corpora[sample]].batch_of(numbers[sample : sample + 1], np.array([sample]))
        assert_equal(batch.slice(sample, sample + 1), own)


@pytest.mark.parametrize("settings", KINDS)
def test_a_batch_of_a_mixture_is_the_concatenation_of_its_parts(
    corpus: Corpus, other: Corpus, settings: SamplerSettings
) -> None:
    mixture = mixture_of([corpus, other], [1, 1], settings)
    parts = [mixture.batch(1020, range(start, start + 4)) for start in (0, 4, 8, 12)]
    assert_equal(mixture.batch(1020, range(16)), Batch.joined(parts))


@pytest.mark.parametrize("settings", KINDS)
def test_a_mixture_of_one_corpus_makes_the_batches_of_its_sampler(corpus: Corpus, settings: SamplerSettings) -> None:
    mixture, sampler = mixture_of([corpus], [0.3], settings), Sampler(corpus, settings, seed=5)
    for consumed in (0, 1020, 123_456):
        assert_equal(mixture.batch(consumed, range(3, 24)), sampler.batch(consumed, range(3, 24)))
        numbers = consumed + np.arange(24)
        assert np.array_equal(mixture.expected_lengths(numbers), sampler.expected_lengths(numbers))


def test_equal_places_in_two_corpora_are_masked_differently(corpus: Corpus) -> None:
    # The same corpus twice: its samples have the same places in both.
    first, second = (sampler.batch(0, range(200)) for sampler in samplers_of([corpus, corpus]))
    assert (first.mlm_labels != second.mlm_labels).any(axis=1).all()
    assert first.masked_tokens == pytest.approx(second.masked_tokens, rel=0.05)
    assert (first.mlm_labels != IGNORE_INDEX).any()


def test_a_share_that_is_too_small_is_refused(corpus: Corpus, other: Corpus) -> None:
    corpora, _ = mixture_of([corpus, other], [65_535, 1]).choose(np.arange(1 << 17))
    assert corpora.sum() == 2
    with pytest.raises(DataError, match=f"the weight of {other.folder} gives it less than 1 sample in 65,536"):
        mixture_of([corpus, other], [65_536, 1])


def test_a_corpus_of_a_mixture_that_changes_is_noticed(corpus: Corpus, other: Corpus, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    prepare([other.folder.parent / "text.txt"], copy, tokenizer=corpus.tokenizer_folder, held_out=0)
    mixture = mixture_of([corpus, Corpus.open(copy)], [1, 1])
    next(copy.glob("*.tokens.npy")).unlink()
    with pytest.raises(DataError, match="was removed while it was being read"):
        mixture.batch(0, range(16))
