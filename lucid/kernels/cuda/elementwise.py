"""Bias and activation, whose backward also computes the bias's gradient. Dropout."""

import numpy as np

from lucid.backend import Array, array_module
from lucid.kernels.arguments import Dropout
from lucid.kernels.catalogue.elementwise import Activation
from lucid.kernels.cuda import launching
from lucid.kernels.cuda.arrays import as_rows, empty, parameter, plain
from lucid.kernels.cuda.compiling import Variant, variant
from lucid.kernels.cuda.dropout_arguments import dropout_arguments
from lucid.kernels.cuda.launching import ROWS, WARP, blocks_of, vector_width
from lucid.kernels.cuda.sums import add_blocks
from lucid.kernels.targets import Target

_GROUPS = 8
_THREADS = WARP * _GROUPS


def form(element: str, vector: int) -> Variant:
    """Return the program of these kernels."""
    return variant("elementwise", element, vector, LANES=WARP, GROUPS=_GROUPS, ROWS=ROWS)


def activation(x: Array, bias: Array | None, kind: Activation) -> Array:
    rows, bias = as_rows(x), None if bias is None else parameter(bias)
    y = array_module(x).empty_like(rows)
    (count, width), vector = rows.shape, vector_width(x.shape[-1], rows, bias)
    arguments = rows, bias, y, np.int64(count), np.int32(width)
    launching.launch(form(x.dtype.name, vector), kind, _grid(count, width, vector), (WARP, _GROUPS), *arguments)
    return y.reshape(x.shape)


def activation_gradient(
    gradient: Array, x: Array, bias: Array | None, kind: Activation, by_bias: Target | None
) -> Array:
    rows, bias = as_rows(x), None if bias is None else parameter(bias)
    gradients, y = as_rows(gradient, like=x), array_module(x).empty_like(rows)
    (count, width), vector = rows.shape, vector_width(x.shape[-1], rows, gradients, bias)
    grid = _grid(count, width, vector)
    sums = empty(x, 1, grid[0], width)
    arguments = gradients, rows, bias, y, sums, np.int64(count), np.int32(width)
    launching.launch(form(x.dtype.name, vector), f"{kind}_gradient", grid, (WARP, _GROUPS), *arguments)
    add_blocks(sums, by_bias)
    return y.reshape(x.shape)


def _grid(rows: int, width: int, vector: int) -> tuple[int, int]:
    return blocks_of(rows, ROWS), blocks_of(width, WARP * vector)


def dropout(x: Array, dropout: Dropout) -> Array:
    x = plain(x)
    y = array_module(x).empty_like(x)
    size = x.size // max(1, len(x))
    vector = vector_width(size, x)
    arguments = x, y, np.int64(x.size), np.int64(size), *dropout_arguments(x, dropout)
    launching.launch(
        form(x.dtype.name, vector), "dropout", (blocks_of(x.size, _THREADS * vector),), (_THREADS,), *arguments
    )
    return y
