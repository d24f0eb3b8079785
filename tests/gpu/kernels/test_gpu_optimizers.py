"""Invariant 4: the CUDA kernels of optimizers agree with the reference, on a GPU and in the emulation."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from kernel_arguments import ADAM, FACTORS, RANDOM, buffers_of, normal

from lucid.kernels import reference
from lucid.kernels.arguments import UpdateBuffers

BOUNDS = [[0, 1], [0, 1, 4, 1023], [0, 16_384, 32_768, 70_016]]


@pytest.mark.parametrize("bounds", BOUNDS)
def test_sums_of_squares_agree_in_double_precision(machine, bounds):
    x, bounds = normal(bounds[-1]), np.array(bounds)
    sums = machine.update("squared_sums", [x], bounds)
    assert sums.dtype == np.float64
    np.testing.assert_allclose(sums, reference.squared_sums(x.astype(np.float64), bounds), rtol=1e-13)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sum_of_squares_with_nan_or_infinity_is_not_finite(machine, bad):
    x = normal(70_000)
    x[66_000] = bad
    sums = machine.update("squared_sums", [x], np.array([0, 30_000, 60_000, 70_000]))
    assert np.isfinite(sums).tolist() == [True, True, False]


def test_the_root_of_a_sum_agrees(machine):
    for count in (1, 600, 7000):
        sums = RANDOM.random(count)
        [root] = machine.run("root_of_sum", sums)
        assert root.shape == ()
        assert root == pytest.approx(reference.root_of_sum(sums), rel=1e-14)


def in_doubles(buffers):
    return UpdateBuffers(*(array.astype(np.float64) for array in buffers[:4]))


@pytest.mark.parametrize("count", [1, 1023, 20_000])
def test_adamw_agrees(machine, count):
    buffers = buffers_of(count)
    expected, got, factors, bounds = (
        in_doubles(buffers),
        machine.put(buffers),
        machine.put(FACTORS),
        np.array([0, count]),
    )
    for _ in range(2):
        machine.kernels.adamw(got, bounds, factors, ADAM)
        reference.adamw(expected, bounds, FACTORS, ADAM)
    for one, other in zip(got[:4], expected[:4], strict=True):
        machine.compare("adamw", "float32", machine.get(one), other, 64)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_lamb_agrees(machine, bounds):
    bounds, buffers = np.array(bounds), buffers_of(bounds[-1])
    expected, got, factors = in_doubles(buffers), machine.put(buffers), machine.put(FACTORS)
    rates = 1e-2 * np.arange(1.0, len(bounds))
    for _ in range(2):
        squares = machine.kernels.lamb_moments(got, bounds, factors, ADAM)
        of_reference = reference.lamb_moments(expected, bounds, FACTORS, ADAM)
        np.testing.assert_allclose(machine.get(squares), of_reference, rtol=1e-5)
        machine.kernels.lamb_update(got, bounds, machine.put(rates), factors, ADAM)
        reference.lamb_update(expected, bounds, rates, FACTORS, ADAM)
    for one, other in zip(got[:4], expected[:4], strict=True):
        machine.compare("lamb", "float32", machine.get(one), other, 64)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_a_measured_update_has_the_same_bits_and_the_sums_of_each_block(machine, bounds):
    bounds, before = np.array(bounds), buffers_of(bounds[-1])
    factors, rates = machine.put(FACTORS), machine.put(1e-2 * np.arange(1.0, len(bounds)))
    for name, arguments in (("adamw", (bounds, factors)), ("lamb_update", (bounds, rates, factors))):
        plain, measured = machine.put(before), machine.put(before)
        squares = machine.put(np.full((len(bounds) - 1, 2), np.nan))
        update = getattr(machine.kernels, name)
        update(plain, *arguments, ADAM)
        update(measured, *arguments, ADAM, squares)
        after, again = ([machine.get(array) for array in buffers[:4]] for buffers in (plain, measured))
        np.testing.assert_array_equal(again, after)
        of_elements = np.stack([(before.values - after[0]).astype(float), after[0].astype(float)], axis=1) ** 2
        expected = [of_elements[start:stop].sum(axis=0) for start, stop in pairwise(bounds)]
        np.testing.assert_allclose(machine.get(squares), expected, rtol=1e-12)


@pytest.mark.parametrize("count", [1023, 4096])
def test_optimizers_round_the_new_values_as_they_write_them(machine, count):
    copy = np.full(count, np.nan, ml_dtypes.bfloat16)
    buffers = machine.put(buffers_of(count)._replace(bfloat16_copy=copy))

    def assert_rounded():
        expected = machine.get(buffers.values).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(machine.get(buffers.bfloat16_copy), expected)

    bounds = np.array([0, count])
    machine.kernels.adamw(buffers, bounds, machine.put(FACTORS), ADAM)
    assert_rounded()
    machine.kernels.lamb_update(buffers, bounds, machine.put(np.array([0.1])), machine.put(FACTORS), ADAM)
    assert_rounded()


@pytest.mark.parametrize("count", [999, 4096])
def test_rounding_is_to_the_nearest_ties_to_even_and_keeps_what_is_not_finite(machine, count):
    x = RANDOM.integers(0, 2**32, count, dtype=np.uint32)
    x[:100] = x[:100] & 0xFFFF0000 | 0x8000
    x = x.view(np.float32)
    x[100:103] = np.nan, np.inf, -np.inf
    [y] = machine.run("round_to_bfloat16", x)
    with np.errstate(invalid="ignore"):
        expected = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(y.astype(np.float32), expected)


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_without_a_finite_scale_an_update_changes_nothing(machine, scale):
    bounds, before = np.array([0, 2000, 5000]), buffers_of(5000)
    after, updates = machine.put(before), machine.put(np.array([6]))
    factors = machine.kernels.update_factors(1e-2, machine.put(np.array(scale)), updates, ADAM.betas)
    machine.kernels.adamw(after, bounds, factors, ADAM)
    assert not machine.get(machine.kernels.lamb_moments(after, bounds, factors, ADAM)).any()
    machine.kernels.lamb_update(after, bounds, machine.put(np.ones(2)), factors, ADAM)
    np.testing.assert_array_equal([machine.get(array) for array in after[:4]], before[:4])
    assert machine.get(updates).tolist() == [6]


@pytest.mark.parametrize("betas", [(0.9, 0.999), None])
def test_factors_belong_to_the_next_update(machine, betas):
    updates, expected_updates = machine.put(np.zeros(1, np.int64)), np.zeros(1, np.int64)
    for _ in range(3):
        got = machine.kernels.update_factors(machine.put(np.array(1e-3)), 0.5, updates, betas)
        expected = reference.update_factors(1e-3, 0.5, expected_updates, betas)
        np.testing.assert_allclose(machine.get(got), expected, rtol=1e-13)
        np.testing.assert_array_equal(machine.get(updates), expected_updates)


def test_the_rates_of_lamb_agree(machine):
    squares, first_blocks = RANDOM.random((1500, 2)), np.array([0, 1, 600, 601, 602, 1400])
    squares[600, 0] = squares[601, 1] = 0
    for adapting in (0, 5, 6):
        got = machine.kernels.lamb_rates(machine.put(squares), first_blocks, adapting, machine.put(FACTORS))
        expected = reference.lamb_rates(squares, first_blocks, adapting, FACTORS)
        np.testing.assert_allclose(machine.get(got), expected, rtol=1e-13)
