"""AdamW and LAMB: one pass over values, gradients and moments (LAMB: a second over all but gradients).

What changes from one update to the next lies in `factors`, in device memory: kernels get the same parameters each time.
"""

import numpy as np

from lucid.backend import Array, array_module
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


def _rates(betas: tuple[float, float], epsilon: float) -> tuple[np.float32, ...]:
    """Return the arguments for RATES of optimizers.cu."""
    first, second = betas
    return tuple(map(np.float32, (first, 1 - first, second, 1 - second, epsilon)))


def adamw(
    values: Array,
    gradients: Array,
    first_moments: Array,
    second_moments: Array,
    factors: Array,
    *,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
    bfloat16_copy: Array | None = None,
) -> None:
    buffers = values, gradients, first_moments, second_moments, bfloat16_copy
    vector = vector_width(len(values), *buffers)
    launching.launch(
        form(vector), "adamw", (blocks_of(len(values), _THREADS * vector),), (_THREADS,),
        *buffers, factors, np.int64(len(values)), np.float64(weight_decay), *_rates(betas, epsilon),
    )  # fmt: skip


def lamb_moments(
    values: Array,
    gradients: Array,
    first_moments: Array,
    second_moments: Array,
    bounds: Array,
    factors: Array,
    *,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
) -> Array:
    buffers = values, gradients, first_moments, second_moments
    blocks, vector = host_bounds(bounds, *buffers)
    squares = empty(values, len(bounds) - 1, 2, dtype=np.float64)
    launching.launch(
        form(vector), "lamb_moments", (len(squares),), (_THREADS_OF_BLOCK,), *buffers, blocks, squares, factors,
        np.float32(weight_decay), *_rates(betas, epsilon),
    )  # fmt: skip
    return squares


def lamb_rates(squares: Array, first_blocks: Array, adapting: int, factors: Array) -> Array:
    rates = empty(squares, len(squares), dtype=np.float64)
    bounds = table_for(squares, np.append(first_blocks, len(squares)))
    launching.launch(
        form(1), "lamb_rates", (len(first_blocks),), (_THREADS_OF_BLOCK,),
        squares, bounds, factors, rates, np.int32(adapting),
    )  # fmt: skip
    return rates


def lamb_update(
    values: Array,
    first_moments: Array,
    second_moments: Array,
    bounds: Array,
    rates: Array,
    factors: Array,
    *,
    epsilon: float,
    weight_decay: float,
    bfloat16_copy: Array | None = None,
) -> None:
    blocks, vector = host_bounds(
        bounds, values, first_moments, second_moments, *() if bfloat16_copy is None else (bfloat16_copy,)
    )
    launching.launch(
        form(vector), "lamb_update", (len(bounds) - 1,), (_THREADS_OF_BLOCK,),
        values, first_moments, second_moments, bfloat16_copy, blocks, rates, factors,
        np.float32(weight_decay), np.float32(epsilon),
    )  # fmt: skip
