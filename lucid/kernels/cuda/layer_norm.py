"""Layer normalisation, alone or fused with the bias, the dropout and the residual sum before it."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from lucid.backend import Array, array_module
from lucid.kernels.arguments import NO_DROPOUT, Dropout
from lucid.kernels.cuda import launching
from lucid.kernels.cuda.arrays import as_rows, empty, parameter
from lucid.kernels.cuda.compiling import Variant, variant
from lucid.kernels.cuda.dropout_arguments import dropout_arguments
from lucid.kernels.cuda.launching import ROWS, blocks_of, threads_of_row, vector_width
from lucid.kernels.cuda.sums import add_blocks
from lucid.kernels.targets import Target

_MOST_THREADS = 512
# About how many threads a block has: in backward, more rows share the end of the sums.
_TOGETHER, _TOGETHER_IN_GRADIENT = 128, 256


def _slots(vector: int) -> int:
    """Return how many accesses of a row a thread holds, so that one warp holds rows of up to 1,024 elements."""
    return 4 if vector == 8 else 8


def _gradient_slots(vector: int) -> int:
    """Return the same for the gradient, which needs five registers for each element."""
    return max(1, 8 // vector) if vector > 1 else 2


def form(element: str, vector: int) -> Variant:
    """Return the program of these kernels."""
    slots = {"SLOTS": _slots(vector), "GRADIENT_SLOTS": _gradient_slots(vector)}
    return variant("layer_norm", element, vector, ROWS=ROWS, **slots, MOST_THREADS=_MOST_THREADS)


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    y, _, mean, reciprocal = _normalise(x, None, None, weight, bias, epsilon, NO_DROPOUT)
    return y, mean, reciprocal


def dropout_add_layer_norm(
    x: Array, bias: Array, residual: Array, weight: Array, shift: Array, epsilon: float, dropout: Dropout
) -> tuple[Array, Array, Array, Array]:
    return _normalise(x, bias, residual, weight, shift, epsilon, dropout)


def _normalise(
    x: Array,
    bias: Array | None,
    residual: Array | None,
    weight: Array,
    shift: Array,
    epsilon: float,
    dropout: Dropout,
) -> tuple[Array, Array, Array, Array]:
    """Return (output, total, mean, reciprocal). The total is x plus bias and residual, if these are given."""
    rows, (weight, shift) = as_rows(x), map(parameter, (weight, shift))
    total = rows
    if residual is not None and bias is not None:
        residual, bias, total = as_rows(residual, like=x), parameter(bias), array_module(x).empty_like(rows)
    y, mean, reciprocal = array_module(x).empty_like(rows), empty(x, len(rows), 1), empty(x, len(rows), 1)
    vector = vector_width(x.shape[-1], rows, residual, bias, weight, shift)
    block = threads_of_row(x.shape[-1], vector * _slots(vector), _MOST_THREADS, _TOGETHER)
    inputs = rows, bias, residual, weight, shift, np.float32(epsilon)
    outputs = None if residual is None else total, y, mean, reciprocal
    arguments = *inputs, *outputs, *_shape(rows), *_dropout_arguments(x, dropout)
    launching.launch(form(x.dtype.name, vector), "normalise", (blocks_of(len(rows), block[1]),), block, *arguments)
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
    arguments = gradient, x, weight, mean, reciprocal, NO_DROPOUT
    return dropout_add_layer_norm_gradient(*arguments, None, by_weight, by_bias)[0]


def dropout_add_layer_norm_gradient(
    gradient: Array,
    total: Array,
    weight: Array,
    mean: Array,
    reciprocal: Array,
    dropout: Dropout,
    by_bias: Target | None,
    by_weight: Target | None,
    by_shift: Target | None,
) -> tuple[Array, Array]:
    totals, gradients = as_rows(total), as_rows(gradient, like=total)
    weight, mean, reciprocal = map(parameter, (weight, mean, reciprocal))
    by_total = array_module(total).empty_like(totals)
    by_x = by_total if dropout.coordinates is None else array_module(total).empty_like(totals)
    sums = empty(total, 3, blocks_of(len(totals), ROWS), total.shape[-1])
    vector = vector_width(total.shape[-1], totals, gradients, weight)
    block = threads_of_row(total.shape[-1], vector * _gradient_slots(vector), _MOST_THREADS, _TOGETHER_IN_GRADIENT)
    arrays = gradients, totals, weight, mean, reciprocal, by_total, by_x, sums
    arguments = *arrays, *_shape(totals), *_dropout_arguments(total, dropout)
    launching.launch(form(total.dtype.name, vector), "normalise_gradient", (sums.shape[1],), block, *arguments)
    add_blocks(sums, by_weight, by_shift, by_bias)
    return by_x.reshape(total.shape), by_total.reshape(total.shape)


def _shape(rows: Array) -> tuple[np.int64, np.int32]:
    """Return the number of rows, and their width."""
    return np.int64(len(rows)), np.int32(rows.shape[1])


def _dropout_arguments(x: Array, dropout: Dropout) -> tuple[Any, ...]:
    """Return the arguments for DROPOUT_PARAMETERS, with coordinates for each of the N rows of x [B, ..., C]."""
    parts, coordinates = math.prod(x.shape[1:-1]), dropout.coordinates
    if coordinates is not None and parts != 1:
        counters = coordinates.counters.repeat(parts)
        positions = array_module(counters).arange(len(counters)) % parts
        if coordinates.positions is not None:
            positions += coordinates.positions.repeat(parts) * parts
        dropout = replace(dropout, coordinates=replace(coordinates, counters=counters, positions=positions))
    return dropout_arguments(x, dropout)
