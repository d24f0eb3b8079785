"""Invariant 4: the compiled kernels of optimizers agree with the reference."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from agreement import ULP, doubled, lamb_steps
from kernel_arguments import ADAM, FACTORS, buffers_of, normal

from lucid.kernels import reference
from lucid.kernels.arguments import UpdateBuffers

BOUNDS = [[0, 1], [0, 1, 4, 1023], [0, 16_384, 32_768, 70_001]]


@pytest.mark.parametrize("bounds", BOUNDS)
def test_sums_of_squares_agree_in_double_precision(cpu, bounds):
    x, bounds = normal(bounds[-1]), np.array(bounds)
    sums = cpu.squared_sums(x, bounds)
    assert sums.dtype == np.float64
    np.testing.assert_allclose(sums, reference.squared_sums(x.astype(np.float64), bounds), rtol=1e-13)


def test_a_sum_of_squares_with_an_infinity_is_not_finite(cpu):
    for bad in (np.nan, np.inf):
        x = normal(70_000)
        x[66_000] = bad
        sums = cpu.squared_sums(x, np.array([0, 30_000, 60_000, 70_000]))
        assert np.isfinite(sums).tolist() == [True, True, False]


@pytest.mark.parametrize("count", [1, 1023, 70_001])
def test_adamw_agrees(cpu, count):
    got, bounds = buffers_of(count), np.array([0, count])
    expected = UpdateBuffers(*map(doubled, got))
    for _ in range(2):
        cpu.adamw(got, bounds, FACTORS, ADAM)
        reference.adamw(expected, bounds, FACTORS, ADAM)
    for one, other in zip(got[:4], expected[:4], strict=True):
        np.testing.assert_allclose(one, other, rtol=64 * ULP, atol=64 * ULP)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_lamb_agrees(cpu, bounds):
    count, bounds = bounds[-1], np.array(bounds)
    got = buffers_of(count)
    expected = UpdateBuffers(*map(doubled, got))
    squares = lamb_steps(cpu, got, bounds), lamb_steps(reference, expected, bounds)
    np.testing.assert_allclose(*squares, rtol=64 * ULP)
    for one, other in zip(got[:4], expected[:4], strict=True):
        np.testing.assert_allclose(one, other, rtol=64 * ULP, atol=64 * ULP)


def updates_of(kernels, bounds):
    """The updates of AdamW and LAMB, as functions of their buffers and of where they write sums of squares."""
    rates = 1e-2 * np.arange(1.0, len(bounds))
    return (
        lambda buffers, squares=None: kernels.adamw(buffers, bounds, FACTORS, ADAM, squares),
        lambda buffers, squares=None: kernels.lamb_update(buffers, bounds, rates, FACTORS, ADAM, squares),
    )


@pytest.mark.parametrize("bounds", BOUNDS)
def test_a_measured_update_has_the_same_bits_and_the_sums_of_each_block(cpu, bounds):
    bounds = np.array(bounds)
    for kernels in (cpu, reference):
        for update in updates_of(kernels, bounds):
            before = buffers_of(bounds[-1])
            plain, measured = (UpdateBuffers(*(array.copy() for array in before[:4])) for _ in range(2))
            squares = np.full((len(bounds) - 1, 2), np.nan)
            update(plain)
            update(measured, squares)
            np.testing.assert_array_equal(measured[:4], plain[:4])
            of_elements = (
                np.stack([(before.values - plain.values).astype(float), plain.values.astype(float)], axis=1) ** 2
            )
            expected = [of_elements[start:stop].sum(axis=0) for start, stop in pairwise(bounds)]
            np.testing.assert_allclose(squares, expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_without_a_finite_scale_an_update_changes_nothing(cpu, scale):
    bounds, factors = np.array([0, 2000, 5000]), FACTORS.copy()
    factors[1] = scale
    for kernels in (cpu, reference):
        before = buffers_of(5000)[:4]
        after = UpdateBuffers(*(array.copy() for array in before))
        kernels.adamw(after, bounds, factors, ADAM)
        assert not kernels.lamb_moments(after, bounds, factors, ADAM).any()
        kernels.lamb_update(after, bounds, np.ones(2), factors, ADAM)
        np.testing.assert_array_equal(after[:4], before)


def test_optimizers_round_the_new_values_too(cpu):
    for kernels in (cpu, reference):
        buffers = buffers_of(70_001, np.full(70_001, np.nan, ml_dtypes.bfloat16))
        for update in updates_of(kernels, np.array([0, 30_000, 70_001])):
            update(buffers)
            np.testing.assert_array_equal(buffers.bfloat16_copy, buffers.values.astype(ml_dtypes.bfloat16))
