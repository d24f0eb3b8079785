"""Random numbers are a pure function of their coordinates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lucid
from lucid import kernels, random
from lucid.kernels.arguments import Dropout
from lucid.random import Coordinates, random_words

WORD = st.integers(0, 2**32 - 1)


def philox_by_the_paper(counter, key):
    """One block of Philox4x32-10, word by word."""
    for _ in range(10):
        first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = (
            second >> 32 ^ counter[1] ^ key[0],
            second & 0xFFFFFFFF,
            first >> 32 ^ counter[3] ^ key[1],
            first & 0xFFFFFFFF,
        )
        key = ((key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF)
    return list(counter)


def test_known_answer_of_random123():
    words = random_words(0, Coordinates.of(0, 0, np.array([0])), 4)[0]
    assert [f"{word:08x}" for word in words] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


@given(stream=WORD, seed=st.integers(0, 2**64 - 1), step=WORD, sample=WORD, block=st.integers(0, 20))
def test_words_are_the_blocks_of_their_coordinates(stream, seed, step, sample, block):
    words = random_words(stream, Coordinates.of(seed, step, np.array([sample])), 4 * block + 4)[0]
    expected = philox_by_the_paper((stream, step, sample, block), (seed & 0xFFFFFFFF, seed >> 32))
    assert words[4 * block :].tolist() == expected


@given(step=WORD, sample=WORD)
def test_step_and_sample_are_the_halves_of_one_word(step, sample):
    [word] = Coordinates.of(0, step, np.array([sample])).counters
    assert word.dtype == np.int64
    assert (int(word) >> 32 & 0xFFFFFFFF, int(word) & 0xFFFFFFFF) == (step, sample)


def test_new_values_of_the_counters_give_new_draws():
    """Recorded steps write the counters of each step to where those of the first one lay."""
    samples, x = np.array([5, 2**40 + 8]), np.ones((2, 9), np.float32)
    one, other = Coordinates.of(7, 11, samples), Coordinates.of(7, 12, samples)
    kernels.of(x).dropout(x, Dropout(0.5, 3, one))
    one.counters[...] = other.counters
    np.testing.assert_array_equal(random_words(3, one, 9), random_words(3, other, 9))
    got, expected = (kernels.of(x).dropout(x, Dropout(0.5, 3, each)) for each in (one, other))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 40_000])
def test_a_sample_draws_the_same_words_in_any_batch_and_for_any_length(count):
    together = random_words(3, Coordinates.of(7, 2, np.array([5, 8, 5])), count)
    alone = random_words(3, Coordinates.of(7, 2, np.array([8])), count + 9)
    assert together.shape == (3, count)
    np.testing.assert_array_equal(together[1], alone[0, :count])
    np.testing.assert_array_equal(together[0], together[2])


def test_uniform_numbers_fill_the_open_interval():
    words = random_words(1, Coordinates.of(1, 1, np.arange(100)), 1000)
    values = random.uniform(words)
    assert values.min() > 0
    assert values.max() < 1
    assert values.mean() == pytest.approx(0.5, abs=0.005)
    assert random.uniform(np.array([0, 2**32 - 1], np.uint32)).tolist() == [2.0**-33, 1 - 2.0**-33]


def test_integers_are_below_their_bounds_and_even():
    words = random_words(1, Coordinates.of(1, 1, np.arange(100)), 1000)
    values = random.integers(words, 7)
    assert np.bincount(values.ravel(), minlength=7).min() > 0.13 * words.size
    assert values.max() == 6


def test_coordinates_hold_for_the_length_of_their_block():
    coordinates = Coordinates.of(1, 2, np.arange(3))
    with random.at(coordinates):
        assert random.current_coordinates(3) is coordinates
        with pytest.raises(ValueError, match="3 samples, the batch has 4"):
            random.current_coordinates(4)
    assert random.current_coordinates(3) is not coordinates


def test_calls_by_hand_count_up_from_the_seed():
    lucid.manual_seed(5)
    first, second = random.current_coordinates(2), random.current_coordinates(2)
    assert (first.seed, first.counters.tolist(), second.counters.tolist()) == (5, [0, 1], [1 << 32, (1 << 32) + 1])
