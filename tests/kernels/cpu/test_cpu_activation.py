"""Invariant 4: the compiled kernels of activation functions agree with the reference."""

import numpy as np
import pytest
from agreement import SHAPES, ULP, assert_agrees
from kernel_arguments import normal
from targets import call

from lucid.kernels import reference


@pytest.mark.parametrize("kind", ["gelu", "gelu_new", "relu"])
class TestActivation:
    @pytest.mark.parametrize("shape", [*SHAPES, (0, 4)])
    def test_it_agrees_forward_and_backward(self, cpu, kind, shape):
        x, bias, gradient = normal(*shape, scale=3), normal(shape[-1]), normal(*shape)
        assert_agrees(cpu, "activation", x, bias, kind)
        assert_agrees(cpu, "activation", x, None, kind)
        assert_agrees(cpu, "activation_gradient", gradient, x, bias, kind, ulps=64)

    def test_it_agrees_for_every_magnitude(self, cpu, kind):
        size = np.float32(10) ** np.linspace(-30, 18, 4001, dtype=np.float32)
        x = np.concatenate([-size, size])[None]
        assert_agrees(cpu, "activation", x, None, kind)
        assert_agrees(cpu, "activation_gradient", np.ones_like(x), x, None, kind)

    def test_nan_and_infinity_propagate(self, cpu, kind):
        x = np.array([[np.nan, np.inf]], np.float32)
        assert not np.isfinite(cpu.activation(x, None, kind)).any()
        assert np.isnan(cpu.activation(np.zeros((1, 1), np.float32), np.float32([np.nan]), kind)).all()
        by_x, by_bias = call(cpu, "activation_gradient", x, np.ones_like(x), None, kind)
        assert not np.isfinite(by_x).any()
        assert not np.isfinite(by_bias).any()


def test_gelu_is_accurate_to_some_units_in_the_last_place_even_in_its_tail(cpu):
    x = np.linspace(-12.5, 8, 20_001, dtype=np.float32)[None]
    expected = reference.activation(x.astype(np.float64), None, "gelu")
    np.testing.assert_allclose(cpu.activation(x, None, "gelu"), expected, rtol=16 * ULP)
