"""AdamW and LAMB: one pass over values, gradients and moments (LAMB: a second over all but gradients)."""

import math

import numpy as np

from lucid.backend import Array, array_module
from lucid.kernels.cuda import launching
from lucid.kernels.cuda.arrays import empty
from lucid.kernels.cuda.compiling import Variant, variant
from lucid.kernels.cuda.launching import blocks_of, host_bounds, vector_width

_THREADS, _THREADS_OF_BLOCK = 256, 256


def form(vector: int) -> Variant:
    """Return the program of these kernels."""
    return variant("optimizers", "float32", vector, THREADS=_THREADS, THREADS_OF_BLOCK=_THREADS_OF_BLOCK)


def _rates(betas: tuple[float, float], gradient_scale: float) -> tuple[np.float32, ...]:
    """Return the arguments for RATES of optimizers.cu."""
    first, second = betas
    return tuple(map(np.float32, (first, 1 - first, second, 1 - second, gradient_scale)))


def _factors(epsilon: float, corrections: tuple[float, float]) -> tuple[np.float32, ...]:
    """Return the arguments for FACTORS of optimizers.cu."""
    return tuple(map(np.float32, (epsilon, 1 / corrections[0], 1 / math.sqrt(corrections[1]))))


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
    rounded: Array | None = None,
) -> None:
    buffers = values, gradients, first_moments, second_moments, rounded
    vector = vector_width(len(values), *buffers)
    launching.launch(
        form(vector), "adamw", (blocks_of(len(values), _THREADS * vector),), (_THREADS,),
        *buffers, np.int64(len(values)), np.float32(1 - learning_rate * weight_decay), np.float32(learning_rate),
        *_rates(betas, gradient_scale), *_factors(epsilon, corrections),
    )  # fmt: skip


def lamb_moments(
    values: Array,
    gradients: Array,
    first_moments: Array,
    second_moments: Array,
    bounds: Array,
    *,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
    corrections: tuple[float, float],
    gradient_scale: float,
) -> Array:
    buffers = values, gradients, first_moments, second_moments
    blocks, vector = host_bounds(bounds, *buffers)
    squares = empty(values, len(bounds) - 1, 2, dtype=np.float64)
    launching.launch(
        form(vector), "lamb_moments", (len(squares),), (_THREADS_OF_BLOCK,), *buffers, blocks, squares,
        np.float32(weight_decay), *_rates(betas, gradient_scale), *_factors(epsilon, corrections),
    )  # fmt: skip
    return squares


def lamb_update(
    values: Array,
    first_moments: Array,
    second_moments: Array,
    bounds: Array,
    rates: Array,
    *,
    epsilon: float,
    weight_decay: float,
    corrections: tuple[float, float],
    rounded: Array | None = None,
) -> None:
    blocks, vector = host_bounds(bounds, values, first_moments, second_moments, *() if rounded is None else (rounded,))
    launching.launch(
        form(vector), "lamb_update", (len(bounds) - 1,), (_THREADS_OF_BLOCK,),
        values, first_moments, second_moments, rounded, blocks,
        array_module(values).asarray(rates, dtype=np.float64), np.float32(weight_decay),
        *_factors(epsilon, corrections),
    )  # fmt: skip
