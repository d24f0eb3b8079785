"""AdamW and LAMB: one pass over values, gradients and moments; LAMB has a second one over all but the gradients."""

import math

import numpy as np
from numba import types

from lucid.backend import Array
from lucid.kernels import threads
from lucid.kernels.arguments import AdamSettings, UpdateBuffers
from lucid.kernels.cpu.compiling import kernel, part, read, write
from lucid.kernels.cpu.mathematics import bfloat16_of
from lucid.kernels.cpu.sums import bounds_of, double_squares

# A chunk stays in the first-level cache from the update to the sums of squares.
_CHUNK = 1024

# The types of `_rates`: the last parameters of a kernel.
_RATES = (types.float64,) * 6

# In place of the sums of squares of blocks that nobody measures.
_NO_SQUARES = np.empty((0, 2))


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


@part
def _finish(
    values: Array, before: Array, start: int, bfloat16_copy: Array, squares: Array, block: int, is_measured: bool
) -> None:
    """Round the new values of a chunk into the copy, and add the squares of the change and of the values.

    `before` has the values before the update; it is overwritten. The copy is empty if there is none.
    """
    if bfloat16_copy.shape[0] > 0:
        target = bfloat16_copy[start : start + values.shape[0]]
        for element in range(values.shape[0]):
            target[element] = bfloat16_of(values[element])
    if is_measured:
        for element in range(values.shape[0]):
            before[element] -= values[element]
        squares[block, 0] += double_squares(before)
        squares[block, 1] += double_squares(values)


@kernel(
    write(1), read(1), write(1), write(1), write(1, types.uint16), read(1, types.int64), write(2, types.float64),
    types.float64, types.float64, *_RATES,
)  # fmt: skip
def _adamw(
    values: Array,
    gradients: Array,
    first_moments: Array,
    second_moments: Array,
    bfloat16_copy: Array,
    bounds: Array,
    squares: Array,
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
    room, is_measured = np.empty(_CHUNK, np.float32), squares.shape[0] > 0
    squares[:] = 0
    for block in range(bounds.shape[0] - 1):
        for start in range(bounds[block], bounds[block + 1], _CHUNK):
            stop = min(start + _CHUNK, bounds[block + 1])
            value, gradient, before = values[start:stop], gradients[start:stop], room[: stop - start]
            first, second = first_moments[start:stop], second_moments[start:stop]
            if is_measured:
                before[:] = value
            for element in range(value.shape[0]):
                one, other = _moments(
                    gradient[element], first[element], second[element], first_beta, second_beta, scale
                )
                first[element], second[element] = one, other
                value[element] = (
                    value[element] * left - _direction(one, other, epsilon, first_factor, root_factor) * rate
                )
            _finish(value, before, start, bfloat16_copy, squares, block, is_measured)


def adamw(
    buffers: UpdateBuffers, bounds: Array, factors: Array, settings: AdamSettings, squares: Array | None = None
) -> None:
    if _changes_nothing(factors):
        return
    learning_rate, rates = float(factors[0]), _rates(settings, factors)
    arrays, results = (*buffers[:4], _bits_of_copy(buffers)), _NO_SQUARES if squares is None else squares

    def work(blocks: slice) -> None:
        _adamw(*arrays, bounds_of(blocks, bounds), results[blocks], learning_rate, settings.weight_decay, *rates)

    threads.split(len(bounds) - 1, len(buffers.values), work)


def _bits_of_copy(buffers: UpdateBuffers) -> Array:
    copy = buffers.bfloat16_copy
    return np.empty(0, np.uint16) if copy is None else copy.view(np.uint16)


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


@kernel(
    write(1), read(1), read(1), write(1, types.uint16), read(1, types.int64), read(1, types.float64),
    write(2, types.float64), *(types.float64,) * 4,
)  # fmt: skip
def _lamb_update(
    values: Array,
    first_moments: Array,
    second_moments: Array,
    bfloat16_copy: Array,
    bounds: Array,
    rates: Array,
    squares: Array,
    weight_decay: float,
    epsilon: float,
    first_factor: float,
    root_factor: float,
) -> None:
    room, other_room, is_measured = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.float32), squares.shape[0] > 0
    squares[:] = 0
    for block in range(rates.shape[0]):
        rate = np.float32(rates[block])
        for start in range(bounds[block], bounds[block + 1], _CHUNK):
            stop = min(start + _CHUNK, bounds[block + 1])
            value, update, before = values[start:stop], room[: stop - start], other_room[: stop - start]
            first, second = first_moments[start:stop], second_moments[start:stop]
            if is_measured:
                before[:] = value
            _write_update(update, value, first, second, weight_decay, epsilon, first_factor, root_factor)
            for element in range(value.shape[0]):
                value[element] -= update[element] * rate
            _finish(value, before, start, bfloat16_copy, squares, block, is_measured)


def lamb_update(
    buffers: UpdateBuffers,
    bounds: Array,
    rates: Array,
    factors: Array,
    settings: AdamSettings,
    squares: Array | None = None,
) -> None:
    if _changes_nothing(factors):
        return
    arrays = buffers.values, buffers.first_moments, buffers.second_moments, _bits_of_copy(buffers)
    results = _NO_SQUARES if squares is None else squares
    constants = settings.weight_decay, settings.epsilon, *factors[2:].tolist()

    def work(blocks: slice) -> None:
        _lamb_update(*arrays, bounds_of(blocks, bounds), rates[blocks], results[blocks], *constants)

    threads.split(len(rates), len(buffers.values), work)
