"""Layer normalisation, alone or together with the bias, the dropout and the residual sum before it."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from lucid.backend import Array, array_module
from lucid.kernels.cuda import launching
from lucid.kernels.cuda.arrays import as_rows, empty, parameter
from lucid.kernels.cuda.compiling import Variant, variant
from lucid.kernels.cuda.draws import draws
from lucid.kernels.cuda.launching import ROWS, blocks_of, threads_of_row, vector_width
from lucid.kernels.cuda.sums import add_blocks
from lucid.kernels.targets import Target
from lucid.random import Coordinates

_MOST_THREADS = 512
# About how many threads a block has: backward shares the end of its sums among more rows.
_TOGETHER, _TOGETHER_IN_GRADIENT = 128, 256


def _slots(vector: int) -> int:
    """Return how many accesses of a row a thread holds: rows of up to 1,024 elements, as BERT's, are then a warp's."""
    return 4 if vector == 8 else 8


def _gradient_slots(vector: int) -> int:
    """Return the same for the gradient, which needs five registers an element."""
    return max(1, 8 // vector) if vector > 1 else 2


def form(element: str, vector: int) -> Variant:
    """Return the program of these kernels."""
    return variant(
        "layer_norm", element, vector, ROWS=ROWS, SLOTS=_slots(vector), GRADIENT_SLOTS=_gradient_slots(vector),
        MOST_THREADS=_MOST_THREADS,
    )  # fmt: skip


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    y, _, mean, reciprocal = _normalise(x, None, None, weight, bias, epsilon, draws(x, 0.0, 0, None))
    return y, mean, reciprocal


def dropout_add_layer_norm(
    x: Array,
    bias: Array,
    residual: Array,
    weight: Array,
    shift: Array,
    epsilon: float,
    probability: float,
    stream: int,
    coordinates: Coordinates | None,
) -> tuple[Array, Array, Array, Array]:
    drawn = _draws(x, probability, stream, coordinates)
    return _normalise(x, bias, residual, weight, shift, epsilon, drawn)


def _normalise(
    x: Array,
    bias: Array | None,
    residual: Array | None,
    weight: Array,
    shift: Array,
    epsilon: float,
    drawn: tuple[Any, ...],
) -> tuple[Array, Array, Array, Array]:
    """Return (output, sum, mean, reciprocal) of x, or of its sum with bias and residual; else the sum is x."""
    rows, (weight, shift) = as_rows(x), map(parameter, (weight, shift))
    total = rows
    if residual is not None and bias is not None:
        residual, bias, total = as_rows(residual, like=x), parameter(bias), array_module(x).empty_like(rows)
    y, mean, reciprocal = array_module(x).empty_like(rows), empty(x, len(rows), 1), empty(x, len(rows), 1)
    vector = vector_width(x.shape[-1], rows, residual, bias, weight, shift)
    block = threads_of_row(x.shape[-1], vector * _slots(vector), _MOST_THREADS, _TOGETHER)
    launching.launch(
        form(x.dtype.name, vector), "normalise", (blocks_of(len(rows), block[1]),), block,
        rows, bias, residual, weight, shift, np.float32(epsilon), None if residual is None else total, y,
        mean, reciprocal, *_shape(rows), *drawn,
    )  # fmt: skip
    return y.reshape(x.shape), total.reshape(x.shape), mean, reciprocal


def layer_norm_gradient(
    gradient: Array,
    x: Array,
    weight: Array,
    mean: Array,
    reciprocal: Array,
    by_weight: Target | None,
    by_bias: Target | None,
) -> Array:
    nothing = 0.0, 0, None
    return dropout_add_layer_norm_gradient(gradient, x, weight, mean, reciprocal, *nothing, None, by_weight, by_bias)[0]


def dropout_add_layer_norm_gradient(
    gradient: Array,
    total: Array,
    weight: Array,
    mean: Array,
    reciprocal: Array,
    probability: float,
    stream: int,
    coordinates: Coordinates | None,
    by_bias: Target | None,
    by_weight: Target | None,
    by_shift: Target | None,
) -> tuple[Array, Array]:
    totals, gradients = as_rows(total), as_rows(gradient, like=total)
    weight, mean, reciprocal = map(parameter, (weight, mean, reciprocal))
    by_total = array_module(total).empty_like(totals)
    by_x = by_total if coordinates is None else array_module(total).empty_like(totals)
    sums = empty(total, 3, blocks_of(len(totals), ROWS), total.shape[-1])
    vector = vector_width(total.shape[-1], totals, gradients, weight)
    block = threads_of_row(total.shape[-1], vector * _gradient_slots(vector), _MOST_THREADS, _TOGETHER_IN_GRADIENT)
    launching.launch(
        form(total.dtype.name, vector), "normalise_gradient", (sums.shape[1],), block,
        gradients, totals, weight, mean, reciprocal, by_total, by_x, sums, *_shape(totals),
        *_draws(total, probability, stream, coordinates),
    )  # fmt: skip
    add_blocks(sums, by_weight, by_shift, by_bias)
    return by_x.reshape(total.shape), by_total.reshape(total.shape)


def _shape(rows: Array) -> tuple[np.int64, np.int32]:
    """Return the number of rows, and their width."""
    return np.int64(len(rows)), np.int32(rows.shape[1])


def _draws(x: Array, probability: float, stream: int, coordinates: Coordinates | None) -> tuple[Any, ...]:
    """Return the arguments for DRAWS, where each row of x [B, ..., C] has coordinates of its own."""
    parts = math.prod(x.shape[1:-1])
    if coordinates is not None and parts != 1:
        counters = coordinates.counters.repeat(parts)
        places = array_module(counters).arange(len(counters)) % parts
        if coordinates.positions is not None:
            places += coordinates.positions.repeat(parts) * parts
        coordinates = replace(coordinates, counters=counters, positions=places)
    return draws(x, probability, stream, coordinates)
