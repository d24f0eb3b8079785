"""AdamW and LAMB: one pass over values, gradients and moments (LAMB: a second, after the norms)."""

import math

import numpy as np
from numba import types

from lucid.backend import Array
from lucid.kernels import threads
from lucid.kernels.cpu.compiling import kernel, part, read, write
from lucid.kernels.cpu.sums import ELEMENTS, double_squares

# What is done to a chunk in two loops stays in the first-level cache between them. A divisor of `ELEMENTS`.
_CHUNK = 1024

# The last parameters of a kernel: what `_rates` returns.
_RATES = (types.float64,) * 6


def _rates(
    betas: tuple[float, float], epsilon: float, corrections: tuple[float, float], gradient_scale: float
) -> tuple[float, float, float, float, float, float]:
    """Return the decay rates, epsilon, the factors of Adam's direction and of the root in it, and the gradient's."""
    return *betas, epsilon, 1 / corrections[0], 1 / math.sqrt(corrections[1]), gradient_scale


@part
def _direction(
    gradients: Array,
    first_moments: Array,
    second_moments: Array,
    first_beta: float,
    second_beta: float,
    epsilon: float,
    first_factor: float,
    root_factor: float,
    scale: float,
    direction: Array,
) -> None:
    """Fold the gradients into the moments, and write Adam's direction."""
    first_kept, first_new = np.float32(first_beta), np.float32(1 - first_beta)
    second_kept, second_new = np.float32(second_beta), np.float32(1 - second_beta)
    for element in range(gradients.shape[0]):
        gradient = gradients[element] * np.float32(scale)
        first_moments[element] = first_moments[element] * first_kept + gradient * first_new
        second_moments[element] = second_moments[element] * second_kept + gradient * gradient * second_new
    for element in range(direction.shape[0]):
        root = np.float32(math.sqrt(second_moments[element])) * np.float32(root_factor)
        direction[element] = first_moments[element] / (root + np.float32(epsilon)) * np.float32(first_factor)


@kernel(write(1), read(1), write(1), write(1), types.float64, types.float64, *_RATES)
def _adamw(
    values: Array,
    gradients: Array,
    first_moments: Array,
    second_moments: Array,
    learning_rate: float,
    weight_decay: float,
    first_beta: float,
    second_beta: float,
    epsilon: float,
    first_factor: float,
    root_factor: float,
    scale: float,
) -> None:
    left, rate = np.float32(1 - learning_rate * weight_decay), np.float32(learning_rate)
    scratch = np.empty(_CHUNK, np.float32)
    for start in range(0, values.shape[0], _CHUNK):
        stop = min(start + _CHUNK, values.shape[0])
        value, direction = values[start:stop], scratch[: stop - start]
        _direction(
            gradients[start:stop], first_moments[start:stop], second_moments[start:stop],
            first_beta, second_beta, epsilon, first_factor, root_factor, scale, direction,
        )  # fmt: skip
        for element in range(value.shape[0]):
            value[element] = value[element] * left - direction[element] * rate


def adamw(
    values: Array,
    gradients: Array,
    first_moments: Array,
    second_moments: Array,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
    corrections: tuple[float, float],
    gradient_scale: float,
) -> None:
    rates = _rates(betas, epsilon, corrections, gradient_scale)

    def work(part: slice) -> None:
        moments = first_moments[part], second_moments[part]
        _adamw(values[part], gradients[part], *moments, learning_rate, weight_decay, *rates)

    threads.split(len(values), len(values), work)


@kernel(read(1), read(1), write(1), write(1), write(1), write(2, types.float64), types.float64, *_RATES)
def _lamb_update(
    values: Array,
    gradients: Array,
    first_moments: Array,
    second_moments: Array,
    update: Array,
    squares: Array,
    weight_decay: float,
    first_beta: float,
    second_beta: float,
    epsilon: float,
    first_factor: float,
    root_factor: float,
    scale: float,
) -> None:
    """Write the update, and the sums of the squares of values and update in each block of `ELEMENTS`."""
    squares[:] = 0
    for start in range(0, values.shape[0], _CHUNK):
        stop = min(start + _CHUNK, values.shape[0])
        value, direction = values[start:stop], update[start:stop]
        _direction(
            gradients[start:stop], first_moments[start:stop], second_moments[start:stop],
            first_beta, second_beta, epsilon, first_factor, root_factor, scale, direction,
        )  # fmt: skip
        for element in range(value.shape[0]):
            direction[element] += value[element] * np.float32(weight_decay)
        squares[start // ELEMENTS, 0] += double_squares(value)
        squares[start // ELEMENTS, 1] += double_squares(direction)


@kernel(write(1), read(1), types.float64)
def _subtract(values: Array, update: Array, factor: float) -> None:
    for element in range(values.shape[0]):
        values[element] -= update[element] * np.float32(factor)


def lamb(
    values: Array,
    gradients: Array,
    first_moments: Array,
    second_moments: Array,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
    corrections: tuple[float, float],
    gradient_scale: float,
    adapt: bool,
) -> None:
    rates = _rates(betas, epsilon, corrections, gradient_scale)
    update, squares = np.empty_like(values), np.empty((-(-len(values) // ELEMENTS), 2))

    def make_update(blocks: slice) -> None:
        part = slice(blocks.start * ELEMENTS, blocks.stop * ELEMENTS)
        moments = first_moments[part], second_moments[part]
        _lamb_update(values[part], gradients[part], *moments, update[part], squares[blocks], weight_decay, *rates)

    threads.split(len(squares), len(values), make_update)
    value_norm, update_norm = np.sqrt(squares.sum(axis=0)).tolist()
    ratio = value_norm / update_norm if adapt and value_norm > 0 and update_norm > 0 else 1.0
    threads.split(len(values), len(values), lambda part: _subtract(values[part], update[part], learning_rate * ratio))
