"""Invariant 4: compiled kernels that write gradients of parameters agree with the reference."""

import ml_dtypes
import numpy as np
import pytest
from agreement import ULP, assert_agrees, doubled
from kernel_arguments import RANDOM, arguments_of_gradients, normal
from targets import TARGETS, assert_targets_are_heeded, call

from lucid.kernels import reference


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("padding_id", [None, 1])
def test_embedding_gradients_agree(cpu, accumulate, padding_id):
    ids, gradient = RANDOM.integers(0, 5, (3, 7)), normal(3, 7, 10)
    got = normal(5, 10)
    expected = got.astype(np.float64)
    cpu.embedding_gradient(gradient, ids, got, accumulate, padding_id)
    reference.embedding_gradient(doubled(gradient), ids, expected, accumulate, padding_id)
    np.testing.assert_allclose(got, expected, rtol=16 * ULP, atol=16 * ULP)


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (65, 7), (4, 50, 33)])
def test_bias_gradients_agree(cpu, shape):
    assert_agrees(cpu, "linear_bias_gradient", normal(*shape))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("rows", [1, 64, 1000])
def test_bias_gradients_of_some_columns_equal_those_of_all(cpu, dtype, rows):
    gradient = normal(rows, 99).astype(dtype)
    whole, *parts = (call(cpu, "linear_bias_gradient", gradient[:, part])[0] for part in np.s_[:, :33, 33:])
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("name", TARGETS)
def test_gradients_by_parameters_are_added_or_left_out_as_asked(cpu, name):
    arguments = arguments_of_gradients(33)[name]
    assert_targets_are_heeded(cpu, name, *arguments)
    assert_targets_are_heeded(reference, name, *arguments)
