"""AdamW and LAMB: one pass over values, gradients and moments (LAMB: a second, after the norms)."""

import math

import numpy as np
from numba import types

from lucid.backend import Array
from lucid.kernels import threads
from lucid.kernels.cpu.compiling import kernel, part, read, write
from lucid.kernels.cpu.sums import ELEMENTS, double_squares

# A chunk stays in the first-level cache from the update to the sums of squares. A divisor of `ELEMENTS`.
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
    gradient: np.float32,
    first_moment: np.float32,
    second_moment: np.float32,
    first_beta: float,
    second_beta: float,
    epsilon: float,
    first_factor: float,
    root_factor: float,
    scale: float,
) -> tuple[np.float32, np.float32, np.float32]:
    """Return one element's moments with the gradient folded in, and Adam's direction."""
    gradient *= np.float32(scale)
    first_moment = first_moment * np.float32(first_beta) + gradient * np.float32(1 - first_beta)
    second_moment = second_moment * np.float32(second_beta) + gradient * gradient * np.float32(1 - second_beta)
    root = np.float32(math.sqrt(second_moment)) * np.float32(root_factor) + np.float32(epsilon)
    return first_moment, second_moment, first_moment / root * np.float32(first_factor)


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
    for element in range(values.shape[0]):
        first_moments[element], second_moments[element], direction = _direction(
            gradients[element], first_moments[element], second_moments[element],
            first_beta, second_beta, epsilon, first_factor, root_factor, scale,
        )  # fmt: skip
        values[element] = values[element] * left - direction * rate


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
        value, gradient, direction = values[start:stop], gradients[start:stop], update[start:stop]
        first, second = first_moments[start:stop], second_moments[start:stop]
        for element in range(gradient.shape[0]):
            first[element], second[element], direction[element] = _direction(
                gradient[element], first[element], second[element],
                first_beta, second_beta, epsilon, first_factor, root_factor, scale,
            )  # fmt: skip
        # A loop of its own: over more than four arrays LLVM does not check that they are apart, and goes one by one.
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
