"""Invariant 4: the CUDA kernels of layer normalisation agree with the reference, on a GPU and in the emulation."""

import numpy as np
import pytest
from kernel_arguments import PROBABILITIES, PURPOSE, dropout_of, normal
from tolerances import SHAPES, TOLERANCES

from lucid.kernels.arguments import Dropout
from lucid.kernels.sequences import Sequences
from lucid.random import Coordinates


class TestLayerNorm:
    @pytest.mark.parametrize("shape", [*SHAPES[1:], (0, 4), (2, 1040), (1, 1, 999)])
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
    def test_it_agrees_forward_and_backward(self, machine, element, shape, scale):
        x, gradient = normal(*shape, scale=scale, dtype=element), normal(*shape, dtype=element)
        weight, bias = normal(shape[-1]), normal(shape[-1])
        _, mean, reciprocal = machine.assert_agrees("layer_norm", x, weight, bias, 1e-12, spacings=TOLERANCES)
        arguments = gradient, x, weight, mean, reciprocal
        machine.assert_agrees("layer_norm_gradient", *arguments, spacings=TOLERANCES)

    def test_a_row_of_equal_numbers_is_finite(self, machine):
        ones = np.ones(3, np.float32)
        y, _, _ = machine.run("layer_norm", np.full((2, 3), 7, np.float32), ones, ones, 1e-12)
        np.testing.assert_array_equal(y, 1)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_nan_and_infinity_propagate_within_their_row_only(self, machine, bad):
        x, ones = normal(2, 40), np.ones(40, np.float32)
        x[1, 17] = bad
        y, _, _ = machine.run("layer_norm", x, ones, ones, 1e-12)
        assert np.isfinite(y[0]).all()
        assert np.isnan(y[1]).any()

    @pytest.mark.parametrize("shape", [*SHAPES[1:], (2, 5), (2, 1040)])
    @pytest.mark.parametrize("probability", PROBABILITIES)
    def test_with_dropout_and_residual_it_agrees_forward_and_backward(
        self, machine, element, shape, probability, expected
    ):
        x, residual, gradient = (normal(*shape, dtype=element) for _ in range(3))
        bias, weight, shift = (normal(shape[-1]) for _ in range(3))
        dropout = dropout_of(probability, shape[0])
        arguments = x, bias, residual, weight, shift, 1e-12, dropout
        y, total, *statistics = found = machine.run("dropout_add_layer_norm", *arguments)
        # The kernel normalises the stored sum: if all its numbers are nearly equal, rounding changes the result much.
        expected_total = expected("dropout_add_layer_norm", *arguments)[1]
        expected_rest = expected("layer_norm", total, weight, shift, 1e-12)
        kind = element.name
        for got, right in zip((total, y, *statistics), (expected_total, *expected_rest), strict=True):
            machine.compare("dropout_add_layer_norm", kind, got.astype(np.float64), right, TOLERANCES[kind])
        arguments = gradient, found[1], weight, *found[2:], dropout
        machine.assert_agrees("dropout_add_layer_norm_gradient", *arguments, spacings=TOLERANCES)

    def test_token_rows_draw_the_dropout_of_their_grid(self, machine):
        grid, mask = normal(3, 20, 12), np.arange(20) < np.array([[20], [3], [7]])
        coordinates, sequences = Coordinates.of(7, 2, np.array([9, 4, 5])), Sequences.unpadded(mask, mask)
        bias, rows = normal(12), sequences.rows_of(grid)
        of_grid, of_rows = (Dropout(0.3, PURPOSE, each) for each in (coordinates, sequences.coordinates(coordinates)))
        expected = machine.run("dropout_add_layer_norm", grid, bias, grid, bias, bias, 1e-12, of_grid)[0]
        got = machine.run("dropout_add_layer_norm", rows, bias, rows, bias, bias, 1e-12, of_rows)[0]
        np.testing.assert_array_equal(got, expected[mask])
