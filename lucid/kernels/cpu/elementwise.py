"""Bias and activation in one pass, and their backward with the bias's gradient in one pass. Dropout."""

import numpy as np
from numba import types

from lucid.backend import Array
from lucid.kernels import threads
from lucid.kernels.arguments import Dropout
from lucid.kernels.catalogue.elementwise import Activation
from lucid.kernels.cpu.arrays import as_rows, plain
from lucid.kernels.cpu.compiling import kernel, part, read, write
from lucid.kernels.cpu.mathematics import ONE, ZERO, gelu, gelu_new, gelu_new_slope, gelu_slope
from lucid.kernels.cpu.philox import DROPOUT_TYPES, dropout_arguments, fill_factors, scratch
from lucid.kernels.cpu.sums import ROWS, add_to, block_sums, rows_of
from lucid.kernels.targets import Target, put

_KINDS = {"relu": 0, "gelu": 1, "gelu_new": 2}


@part
def _activate(x: Array, bias: Array, y: Array, kind: int) -> None:
    if kind == 0:
        for column in range(x.shape[0]):
            z = x[column] + bias[column]
            y[column] = ZERO if z < ZERO else z
    elif kind == 1:
        for column in range(x.shape[0]):
            y[column] = gelu(x[column] + bias[column])
    else:
        for column in range(x.shape[0]):
            y[column] = gelu_new(x[column] + bias[column])


@part
def _by_slope(gradient: Array, x: Array, bias: Array, y: Array, kind: int) -> None:
    if kind == 0:
        for column in range(x.shape[0]):
            y[column] = gradient[column] * (ONE if x[column] + bias[column] > ZERO else ZERO)
    elif kind == 1:
        for column in range(x.shape[0]):
            y[column] = gradient[column] * gelu_slope(x[column] + bias[column])
    else:
        for column in range(x.shape[0]):
            y[column] = gradient[column] * gelu_new_slope(x[column] + bias[column])


@kernel(read(2), read(1), write(2), types.int64)
def _activation(x: Array, bias: Array, y: Array, kind: int) -> None:
    for row in range(x.shape[0]):
        _activate(x[row], bias, y[row], kind)


@kernel(read(2), read(2), read(1), write(2), write(2), types.int64)
def _activation_gradient(gradient: Array, x: Array, bias: Array, y: Array, sums: Array, kind: int) -> None:
    for row in range(x.shape[0]):
        _by_slope(gradient[row], x[row], bias, y[row], kind)
        add_to(sums[row // ROWS], y[row])


def activation(x: Array, bias: Array | None, kind: Activation) -> Array:
    rows, bias = as_rows(x), _bias(bias, x)
    y = np.empty_like(rows)
    threads.split(len(rows), rows.size, lambda part: _activation(rows[part], bias, y[part], _KINDS[kind]))
    return y.reshape(x.shape)


def activation_gradient(
    gradient: Array, x: Array, bias: Array | None, kind: Activation, by_bias: Target | None
) -> Array:
    gradients, rows, bias = as_rows(gradient), as_rows(x), _bias(bias, x)
    y, sums = np.empty_like(rows), block_sums(*rows.shape)

    def work(blocks: slice) -> None:
        part = rows_of(blocks)
        _activation_gradient(gradients[part], rows[part], bias, y[part], sums[blocks], _KINDS[kind])

    threads.split(len(sums), rows.size, work)
    put(sums.sum(axis=0), by_bias)
    return y.reshape(x.shape)


def _bias(bias: Array | None, x: Array) -> Array:
    return np.zeros(x.shape[-1], np.float32) if bias is None else plain(bias)


@kernel(read(2), write(2), *DROPOUT_TYPES)
def _dropout(x: Array, y: Array, key: Array, counters: Array, positions: Array, scale: float) -> None:
    factors, words = scratch(x.shape[1])
    for row in range(x.shape[0]):
        fill_factors(factors, words, key, counters, positions, scale, row)
        source, target = x[row], y[row]
        for column in range(factors.shape[0]):
            target[column] = source[column] * factors[column]


def dropout(x: Array, dropout: Dropout) -> Array:
    rows = as_rows(x if x.ndim > 1 else x[:, None])
    y, arguments = np.empty_like(rows), dropout_arguments(dropout, len(rows) // max(1, len(x)))
    threads.split(len(rows), rows.size, lambda part: _dropout(rows[part], y[part], *arguments.of_rows(part)))
    return y.reshape(x.shape)
