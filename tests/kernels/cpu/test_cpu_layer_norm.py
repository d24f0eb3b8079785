"""Invariant 4: the compiled kernels of layer normalisation agree with the reference."""

import numpy as np
import pytest
from agreement import SHAPES, assert_agrees
from kernel_arguments import PROBABILITIES, dropout_of, normal


class TestLayerNorm:
    @pytest.mark.parametrize("shape", [*SHAPES[1:], (0, 4)])
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
    def test_it_agrees_forward_and_backward(self, cpu, shape, scale):
        x, weight, bias, gradient = normal(*shape, scale=scale), normal(shape[-1]), normal(shape[-1]), normal(*shape)
        _, mean, reciprocal = assert_agrees(cpu, "layer_norm", x, weight, bias, 1e-12)
        assert_agrees(cpu, "layer_norm_gradient", gradient, x, weight, mean, reciprocal, ulps=64)

    def test_a_row_of_equal_numbers_is_finite(self, cpu):
        y, _, _ = cpu.layer_norm(np.full((2, 3), 7, np.float32), *np.ones((2, 3), np.float32), 1e-12)
        np.testing.assert_array_equal(y, 1)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_nan_and_infinity_propagate_within_their_row_only(self, cpu, bad):
        x, ones = normal(2, 40), np.ones(40, np.float32)
        x[1, 17] = bad
        y, _, _ = cpu.layer_norm(x, ones, ones, 1e-12)
        assert np.isfinite(y[0]).all()
        assert np.isnan(y[1]).any()

    @pytest.mark.parametrize("shape", [*SHAPES[1:], (2, 5)])
    @pytest.mark.parametrize("probability", PROBABILITIES)
    def test_with_dropout_and_residual_it_agrees_forward_and_backward(self, cpu, shape, probability):
        C = shape[-1]
        x, residual, gradient = normal(*shape), normal(*shape), normal(*shape)
        dropout = dropout_of(probability, shape[0])
        arguments = x, normal(C), residual, normal(C), normal(C), 1e-12, dropout
        _, total, mean, reciprocal = assert_agrees(cpu, "dropout_add_layer_norm", *arguments)
        arguments = gradient, total, normal(C), mean, reciprocal, dropout
        assert_agrees(cpu, "dropout_add_layer_norm_gradient", *arguments, ulps=64)
