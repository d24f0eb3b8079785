"""AdamW and LAMB: one pass over values, gradients and moments; LAMB has a second one over all but the gradients."""

import math

import numpy as np
from numba import types

from lucid.backend import Array
from lucid.kernels import threads
from lucid.kernels.arguments import AdamSettings, UpdateBuffers
from lucid.kernels.cpu.compiling import kernel, part, read, write
from lucid.kernels.cpu.sums import bounds_of, double_squares

# A chunk stays in the first-level cache from the update to the sums of squares.
_CHUNK = 1024

# The types of `_rates`: the last parameters of a kernel.
_RATES = (types.float64,) * 6


def _rates(settings: AdamSettings, factors: Array) -> tuple[float, float, float, float, float, float]:
    """Return the decay rates, epsilon, the factors of Adam's direction and of its root, and the gradient's scale."""
    _, gradient_scale, *corrections = factors.tolist()
    return *settings.betas, settings.epsilon, *corrections, gradient_scale


def _changes_nothing(factors: Array) -> bool:
    return not math.isfinite(factors[1])


@part
def _moments(
    gradient: np.float32,
    first_moment: np.float32,
    second_moment: np.float32,
    first_beta: float,
    second_beta: float,
    scale: float,
) -> tuple[np.float32, np.float32]:
    """Return one element's moments with the gradient folded in."""
    gradient *= np.float32(scale)
    first_moment = first_moment * np.float32(first_beta) + gradient * np.float32(1 - first_beta)
    return first_moment, second_moment * np.float32(second_beta) + gradient * gradient * np.float32(1 - second_beta)


@part
def _direction(
    first_moment: np.float32, second_moment: np.float32, epsilon: float, first_factor: float, root_factor: float
) -> np.float32:
    """Return Adam's direction for one element."""
    root = np.float32(math.sqrt(second_moment)) * np.float32(root_factor) + np.float32(epsilon)
    return first_moment / root * np.float32(first_factor)


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
        first, second = _moments(
            gradients[element], first_moments[element], second_moments[element], first_beta, second_beta, scale
        )
        first_moments[element], second_moments[element] = first, second
        values[element] = values[element] * left - _direction(first, second, epsilon, first_factor, root_factor) * rate


def adamw(buffers: UpdateBuffers, factors: Array, settings: AdamSettings) -> None:
    if _changes_nothing(factors):
        return
    values, gradients, first_moments, second_moments, bfloat16_copy = buffers
    learning_rate, rates = float(factors[0]), _rates(settings, factors)

    def work(part: slice) -> None:
        moments = first_moments[part], second_moments[part]
        _adamw(values[part], gradients[part], *moments, learning_rate, settings.weight_decay, *rates)
        if bfloat16_copy is not None:
            bfloat16_copy[part] = values[part]

    threads.split(len(values), len(values), work)


@part
def _write_update(
    update: Array,
    values: Array,
    first_moments: Array,
    second_moments: Array,
    weight_decay: float,
    epsilon: float,
    first_factor: float,
    root_factor: float,
) -> None:
    """Write LAMB's update of a chunk."""
    for element in range(values.shape[0]):
        direction = _direction(first_moments[element], second_moments[element], epsilon, first_factor, root_factor)
        update[element] = direction + values[element] * np.float32(weight_decay)


@kernel(read(1), read(1), write(1), write(1), read(1, types.int64), write(2, types.float64), types.float64, *_RATES)
def _lamb_moments(
    values: Array,
    gradients: Array,
    first_moments: Array,
    second_moments: Array,
    bounds: Array,
    squares: Array,
    weight_decay: float,
    first_beta: float,
    second_beta: float,
    epsilon: float,
    first_factor: float,
    root_factor: float,
    scale: float,
) -> None:
    room = np.empty(_CHUNK, np.float32)
    squares[:] = 0
    for block in range(squares.shape[0]):
        for start in range(bounds[block], bounds[block + 1], _CHUNK):
            stop = min(start + _CHUNK, bounds[block + 1])
            value, gradient, update = values[start:stop], gradients[start:stop], room[: stop - start]
            first, second = first_moments[start:stop], second_moments[start:stop]
            # A separate loop: with more than four arrays LLVM does not check for overlap, and does not vectorise.
            for element in range(gradient.shape[0]):
                first[element], second[element] = _moments(
                    gradient[element], first[element], second[element], first_beta, second_beta, scale
                )
            _write_update(update, value, first, second, weight_decay, epsilon, first_factor, root_factor)
            squares[block, 0] += double_squares(value)
            squares[block, 1] += double_squares(update)


def lamb_moments(buffers: UpdateBuffers, bounds: Array, factors: Array, settings: AdamSettings) -> Array:
    if _changes_nothing(factors):
        return np.zeros((len(bounds) - 1, 2))
    rates = _rates(settings, factors)
    squares = np.empty((len(bounds) - 1, 2))

    def work(blocks: slice) -> None:
        own_bounds = bounds_of(blocks, bounds)
        _lamb_moments(*buffers[:4], own_bounds, squares[blocks], settings.weight_decay, *rates)

    threads.split(len(squares), len(buffers.values), work)
    return squares


@kernel(write(1), read(1), read(1), read(1, types.int64), read(1, types.float64), *(types.float64,) * 4)
def _lamb_update(
    values: Array,
    first_moments: Array,
    second_moments: Array,
    bounds: Array,
    rates: Array,
    weight_decay: float,
    epsilon: float,
    first_factor: float,
    root_factor: float,
) -> None:
    room = np.empty(_CHUNK, np.float32)
    for block in range(rates.shape[0]):
        rate = np.float32(rates[block])
        for start in range(bounds[block], bounds[block + 1], _CHUNK):
            stop = min(start + _CHUNK, bounds[block + 1])
            value, update = values[start:stop], room[: stop - start]
            first, second = first_moments[start:stop], second_moments[start:stop]
            _write_update(update, value, first, second, weight_decay, epsilon, first_factor, root_factor)
            for element in range(value.shape[0]):
                value[element] -= update[element] * rate


def lamb_update(buffers: UpdateBuffers, bounds: Array, rates: Array, factors: Array, settings: AdamSettings) -> None:
    if _changes_nothing(factors):
        return
    values, _, first_moments, second_moments, bfloat16_copy = buffers
    constants = settings.weight_decay, settings.epsilon, *factors[2:].tolist()

    def work(blocks: slice) -> None:
        moments = first_moments, second_moments
        _lamb_update(values, *moments, bounds_of(blocks, bounds), rates[blocks], *constants)

    threads.split(len(rates), len(values), work)
    if bfloat16_copy is not None:
        bfloat16_copy[...] = values
