"""Initial weights: drawn from a truncated normal distribution, and unchanged between versions to the last bit."""

import math
import statistics

import numpy as np
import pytest

import lucid
from lucid import random
from lucid.nn import init

WORDS = np.concatenate(
    [
        np.random.default_rng(2).integers(0, 2**32, 200_000, dtype=np.uint64),
        np.arange(1000, dtype=np.uint64),
        2**32 - 1 - np.arange(1000, dtype=np.uint64),
        2**31 + np.arange(-500, 500),
    ]
).astype(np.uint32)


def test_quantiles_equal_those_of_the_normal_distribution():
    probabilities = np.concatenate([random.uniform(WORDS), [0.5, math.exp(-2), 1 - math.exp(-2), 1e-13, 1 - 1e-13]])
    exact = np.array([statistics.NormalDist().inv_cdf(probability) for probability in probabilities])
    # Near one half the quantile is as exact as the probability's distance from it.
    np.testing.assert_allclose(init.normal_quantile(probabilities), exact, rtol=2e-15, atol=1e-30)


def test_initial_weights_equal_those_of_scipys_quantiles_bit_for_bit(monkeypatch):
    special = pytest.importorskip("scipy.special")
    below, above = special.ndtr(-2.0), special.ndtr(2.0)
    expected = special.ndtri(below + random.uniform(WORDS) * (above - below)) * 0.02
    monkeypatch.setattr(random, "random_words", lambda stream, coordinates, count: WORDS[None, :count])
    drawn = init.truncated_normal((len(WORDS) // 4, 4), 0.02)
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn.ravel(), expected[: drawn.size].astype(np.float32))


def test_each_call_draws_new_weights_within_two_standard_deviations():
    lucid.manual_seed(1)
    first, second = (init.truncated_normal((300, 100), 0.5) for _ in range(2))
    assert abs(first.mean()) < 0.01
    assert first.std() == pytest.approx(0.5 * 0.8796, rel=0.02)  # cut off, a deviation is smaller
    assert np.abs(first).max() <= 1.0
    assert not np.array_equal(first, second)
    lucid.manual_seed(1)
    np.testing.assert_array_equal(init.truncated_normal((300, 100), 0.5), first)


def test_without_draws_weights_are_zero_and_later_draws_are_unchanged():
    lucid.manual_seed(1)
    _, expected = (init.truncated_normal((3, 5), 0.5) for _ in range(2))
    lucid.manual_seed(1)
    with init.without_draws():
        assert not init.truncated_normal((3, 5), 0.5).any()
    np.testing.assert_array_equal(init.truncated_normal((3, 5), 0.5), expected)
