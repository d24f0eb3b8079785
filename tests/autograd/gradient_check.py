"""Gradient check along one random direction: two evaluations and one dot product, in float64."""

from collections.abc import Callable

import numpy as np

from lucid import Tensor, tensor


def check_gradients(
    function: Callable[..., Tensor], *arrays: np.ndarray, step: float = 1e-5, tolerance: float = 1e-7
) -> None:
    """Compare the gradients of sum(weights * function(*arrays)) with central differences, for every input."""
    generator = np.random.default_rng(0)
    inputs = [tensor(np.array(array, dtype=np.float64), requires_grad=True) for array in arrays]
    output = function(*inputs)
    weights = generator.standard_normal(output.shape)
    output.backward(weights)
    for position, (item, array) in enumerate(zip(inputs, arrays, strict=True)):
        direction = generator.standard_normal(np.shape(array))
        values = []
        for sign in (1, -1):
            moved = [tensor(np.array(other, dtype=np.float64)) for other in arrays]
            moved[position] = tensor(np.asarray(array, dtype=np.float64) + sign * step * direction)
            values.append(float((weights * function(*moved).numpy()).sum()))
        expected = (values[0] - values[1]) / (2 * step)
        assert item.grad is not None, f"input {position} got no gradient"
        got = float((item.grad.numpy() * direction).sum())
        np.testing.assert_allclose(
            got, expected, rtol=tolerance, atol=tolerance, err_msg=f"gradient of input {position}"
        )
