"""AdamW and LAMB: one pass over values, gradients and moments (LAMB: a second over all but gradients).

The numbers that change from update to update are in `factors`, in device memory, so that a captured launch stays valid.
"""

import numpy as np

from lucid.backend import Array, array_module
from lucid.kernels.arguments import AdamSettings, UpdateBuffers
from lucid.kernels.cuda import launching
from lucid.kernels.cuda.arrays import empty
from lucid.kernels.cuda.compiling import Variant, variant
from lucid.kernels.cuda.launching import blocks_of, host_bounds, table_for, vector_width

_THREADS, _THREADS_OF_BLOCK = 256, 256


def form(vector: int) -> Variant:
    """Return the program of these kernels."""
    return variant("optimizers", "float32", vector, THREADS=_THREADS, THREADS_OF_BLOCK=_THREADS_OF_BLOCK)


def update_factors(
    learning_rate: float | Array, gradient_scale: float | Array, updates: Array, betas: tuple[float, float] | None
) -> Array:
    factors = empty(updates, 4, dtype=np.float64)
    rate, scale = (_number(updates, value) for value in (learning_rate, gradient_scale))
    # A beta of 0 corrects nothing.
    first, second = (0.0, 0.0) if betas is None else betas
    launching.launch(
        form(1), "update_factors", (1,), (1,), rate, scale, updates, factors, np.float64(first), np.float64(second)
    )
    return factors


def _number(like: Array, value: float | Array) -> Array:
    """Return a number in memory of the device of `like`."""
    return array_module(like).full((), value, np.float64) if isinstance(value, float | int) else value


def _rates(settings: AdamSettings) -> tuple[np.float32, ...]:
    """Return the arguments for RATES of optimizers.cu."""
    first, second = settings.betas
    return tuple(map(np.float32, (first, 1 - first, second, 1 - second, settings.epsilon)))


def adamw(
    buffers: UpdateBuffers, bounds: Array, factors: Array, settings: AdamSettings, squares: Array | None = None
) -> None:
    constants = np.float64(settings.weight_decay), *_rates(settings)
    if squares is None:
        count = len(buffers.values)
        vector = vector_width(count, *buffers)
        grid, arguments = blocks_of(count, _THREADS * vector), (*buffers, factors, np.int64(count), *constants)
        launching.launch(form(vector), "adamw", (grid,), (_THREADS,), *arguments)
    else:
        blocks, vector = host_bounds(bounds, *buffers)
        arguments = *buffers, blocks, squares, factors, *constants
        launching.launch(form(vector), "measured_adamw", (len(squares),), (_THREADS_OF_BLOCK,), *arguments)


def lamb_moments(buffers: UpdateBuffers, bounds: Array, factors: Array, settings: AdamSettings) -> Array:
    blocks, vector = host_bounds(bounds, *buffers[:4])
    squares = empty(buffers.values, len(bounds) - 1, 2, dtype=np.float64)
    arguments = *buffers[:4], blocks, squares, factors, np.float32(settings.weight_decay), *_rates(settings)
    launching.launch(form(vector), "lamb_moments", (len(squares),), (_THREADS_OF_BLOCK,), *arguments)
    return squares


def lamb_rates(squares: Array, first_blocks: Array, adapting: int, factors: Array) -> Array:
    rates = empty(squares, len(squares), dtype=np.float64)
    bounds = table_for(squares, np.append(first_blocks, len(squares)))
    arguments = squares, bounds, factors, rates, np.int32(adapting)
    launching.launch(form(1), "lamb_rates", (len(first_blocks),), (_THREADS_OF_BLOCK,), *arguments)
    return rates


def lamb_update(
    buffers: UpdateBuffers,
    bounds: Array,
    rates: Array,
    factors: Array,
    settings: AdamSettings,
    squares: Array | None = None,
) -> None:
    values, _, first_moments, second_moments, bfloat16_copy = buffers
    blocks, vector = host_bounds(bounds, values, first_moments, second_moments, bfloat16_copy)
    arrays = values, first_moments, second_moments, bfloat16_copy, blocks, rates, squares, factors
    constants = np.float32(settings.weight_decay), np.float32(settings.epsilon)
    launching.launch(form(vector), "lamb_update", (len(bounds) - 1,), (_THREADS_OF_BLOCK,), *arrays, *constants)
