"""Invariant 4: the CUDA kernels of activation functions agree with the reference, on a GPU and in the emulation."""

import numpy as np
import pytest
from kernel_arguments import normal
from tolerances import SHAPES, TOLERANCES

from lucid.kernels import reference


@pytest.mark.parametrize("kind", ["gelu", "gelu_new", "relu"])
class TestActivation:
    @pytest.mark.parametrize("shape", [*SHAPES, (0, 4)])
    def test_it_agrees_forward_and_backward(self, machine, element, kind, shape):
        x, bias, gradient = normal(*shape, scale=3, dtype=element), normal(shape[-1]), normal(*shape, dtype=element)
        # The tail of a GELU, perhaps the only part, is a small difference of numbers of about this size.
        settings = {"spacings": TOLERANCES, "least": 1.0}
        machine.assert_agrees("activation", x, bias, kind, **settings)
        machine.assert_agrees("activation", x, None, kind, **settings)
        machine.assert_agrees("activation_gradient", gradient, x, bias, kind, **settings)

    def test_it_agrees_for_every_magnitude(self, machine, kind):
        size = np.float32(10) ** np.linspace(-30, 18, 4001, dtype=np.float32)
        x = np.concatenate([-size, size])[None]
        [y] = machine.run("activation", x, None, kind)
        np.testing.assert_allclose(y, reference.activation(x.astype(np.float64), None, kind), rtol=2e-6, atol=1e-6)
        slope, _ = machine.run("activation_gradient", np.ones_like(x), x, None, kind)
        expected = reference.activation_gradient(np.ones(x.shape), x.astype(np.float64), None, kind, None)
        np.testing.assert_allclose(slope, expected, rtol=2e-6, atol=1e-6)

    def test_nan_and_infinity_propagate(self, machine, kind):
        x = np.array([[np.nan, np.inf]], np.float32)
        assert not np.isfinite(machine.run("activation", x, None, kind)[0]).any()
        by_x, by_bias = machine.run("activation_gradient", x, np.ones_like(x), None, kind)
        assert not np.isfinite(by_x).any()
        assert not np.isfinite(by_bias).any()
