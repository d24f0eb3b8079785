"""Layer normalisation, alone or fused with the bias, the dropout and the residual sum before it."""

import math

import numpy as np
from numba import types

from lucid.backend import Array
from lucid.kernels import threads
from lucid.kernels.arguments import Dropout
from lucid.kernels.cpu.arrays import as_rows, plain
from lucid.kernels.cpu.compiling import kernel, part, read, reduction, write
from lucid.kernels.cpu.mathematics import ONE, ZERO, fma
from lucid.kernels.cpu.philox import DROPOUT_TYPES, dropout_arguments, fill_factors, scratch
from lucid.kernels.cpu.sums import ROWS, add_to, block_sums, row_sum, rows_of, squares_around
from lucid.kernels.targets import Target, put


@part
def _normalise(x: Array, weight: Array, bias: Array, epsilon: np.float32, y: Array) -> tuple[np.float32, np.float32]:
    """Write one row of the output; return its mean and reciprocal deviation."""
    width = np.float32(x.shape[0])
    mean = row_sum(x) / width
    reciprocal = ONE / np.float32(math.sqrt(squares_around(x, mean) / width + epsilon))
    for column in range(x.shape[0]):
        y[column] = fma((x[column] - mean) * reciprocal, weight[column], bias[column])
    return mean, reciprocal


@reduction
def _along(
    gradient: Array, x: Array, weight: Array, mean: np.float32, reciprocal: np.float32
) -> tuple[np.float32, np.float32]:
    """Return the sum of the weighted gradient, and the sum of its product with the normalised row."""
    total, product = ZERO, ZERO
    for column in range(x.shape[0]):
        weighted = gradient[column] * weight[column]
        total += weighted
        product += weighted * ((x[column] - mean) * reciprocal)
    return total, product


@part
def _normalise_gradient(
    gradient: Array,
    x: Array,
    weight: Array,
    mean: np.float32,
    reciprocal: np.float32,
    y: Array,
    weight_sums: Array,
    bias_sums: Array,
) -> None:
    """Write one row of the gradient by x, and add to the gradients by weight and bias."""
    width = np.float32(x.shape[0])
    total, product = _along(gradient, x, weight, mean, reciprocal)
    shift, slope = total / width, product / width
    for column in range(x.shape[0]):
        normalised = (x[column] - mean) * reciprocal
        y[column] = fma(-normalised, slope, gradient[column] * weight[column] - shift) * reciprocal
    for column in range(x.shape[0]):
        normalised = (x[column] - mean) * reciprocal
        weight_sums[column] = fma(gradient[column], normalised, weight_sums[column])
        bias_sums[column] += gradient[column]


@kernel(read(2), read(1), read(1), types.float64, write(2), write(2), write(2))
def _layer_norm(x: Array, weight: Array, bias: Array, epsilon: float, y: Array, mean: Array, reciprocal: Array) -> None:
    for row in range(x.shape[0]):
        mean[row, 0], reciprocal[row, 0] = _normalise(x[row], weight, bias, np.float32(epsilon), y[row])


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    rows, weight, bias = as_rows(x), plain(weight), plain(bias)
    y, mean, reciprocal = np.empty_like(rows), _column(rows), _column(rows)

    def work(part: slice) -> None:
        _layer_norm(rows[part], weight, bias, epsilon, y[part], mean[part], reciprocal[part])

    threads.split(len(rows), rows.size, work)
    return y.reshape(x.shape), mean, reciprocal


@kernel(read(2), read(2), read(1), read(2), read(2), write(2), write(2), write(2))
def _layer_norm_gradient(
    gradient: Array,
    x: Array,
    weight: Array,
    mean: Array,
    reciprocal: Array,
    y: Array,
    weight_sums: Array,
    bias_sums: Array,
) -> None:
    for row in range(x.shape[0]):
        sums = weight_sums[row // ROWS], bias_sums[row // ROWS]
        _normalise_gradient(gradient[row], x[row], weight, mean[row, 0], reciprocal[row, 0], y[row], sums[0], sums[1])


def layer_norm_gradient(
    gradient: Array,
    x: Array,
    weight: Array,
    mean: Array,
    reciprocal: Array,
    by_weight: Target | None,
    by_bias: Target | None,
) -> Array:
    gradients, rows, weight = as_rows(gradient), as_rows(x), plain(weight)
    y, weight_sums, bias_sums = np.empty_like(rows), block_sums(*rows.shape), block_sums(*rows.shape)

    def work(blocks: slice) -> None:
        part = rows_of(blocks)
        inputs = gradients[part], rows[part], weight, mean[part], reciprocal[part]
        _layer_norm_gradient(*inputs, y[part], weight_sums[blocks], bias_sums[blocks])

    threads.split(len(weight_sums), rows.size, work)
    put(weight_sums.sum(axis=0), by_weight)
    put(bias_sums.sum(axis=0), by_bias)
    return y.reshape(x.shape)


@kernel(read(2), read(1), read(2), read(1), read(1), types.float64, *(write(2),) * 4, *DROPOUT_TYPES)
def _dropout_add_layer_norm(
    x: Array,
    bias: Array,
    residual: Array,
    weight: Array,
    shift: Array,
    epsilon: float,
    total: Array,
    y: Array,
    mean: Array,
    reciprocal: Array,
    key: Array,
    counters: Array,
    positions: Array,
    scale: float,
) -> None:
    factors, words = scratch(x.shape[1])
    for row in range(x.shape[0]):
        fill_factors(factors, words, key, counters, positions, scale, row)
        source, other, target = x[row], residual[row], total[row]
        for column in range(factors.shape[0]):
            target[column] = (source[column] + bias[column]) * factors[column] + other[column]
        mean[row, 0], reciprocal[row, 0] = _normalise(target, weight, shift, np.float32(epsilon), y[row])


def dropout_add_layer_norm(
    x: Array, bias: Array, residual: Array, weight: Array, shift: Array, epsilon: float, dropout: Dropout
) -> tuple[Array, Array, Array, Array]:
    rows, others, bias, weight, shift = as_rows(x), as_rows(residual), plain(bias), plain(weight), plain(shift)
    total, y, mean, reciprocal = np.empty_like(rows), np.empty_like(rows), _column(rows), _column(rows)
    arguments = dropout_arguments(dropout, len(rows) // max(1, len(x)))

    def work(part: slice) -> None:
        inputs = rows[part], bias, others[part], weight, shift, epsilon
        outputs = total[part], y[part], mean[part], reciprocal[part]
        _dropout_add_layer_norm(*inputs, *outputs, *arguments.of_rows(part))

    threads.split(len(rows), rows.size, work)
    return y.reshape(x.shape), total.reshape(x.shape), mean, reciprocal


@kernel(read(2), read(2), read(1), read(2), read(2), *(write(2),) * 5, *DROPOUT_TYPES)
def _dropout_add_layer_norm_gradient(
    gradient: Array,
    total: Array,
    weight: Array,
    mean: Array,
    reciprocal: Array,
    by_total: Array,
    by_x: Array,
    bias_sums: Array,
    weight_sums: Array,
    shift_sums: Array,
    key: Array,
    counters: Array,
    positions: Array,
    scale: float,
) -> None:
    factors, words = scratch(total.shape[1])
    for row in range(total.shape[0]):
        block = row // ROWS
        source, target = by_total[row], by_x[row]
        weights, shifts = weight_sums[block], shift_sums[block]
        _normalise_gradient(
            gradient[row], total[row], weight, mean[row, 0], reciprocal[row, 0], source, weights, shifts
        )
        fill_factors(factors, words, key, counters, positions, scale, row)
        for column in range(factors.shape[0]):
            target[column] = source[column] * factors[column]
        add_to(bias_sums[block], target)


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
    gradients, totals, weight = as_rows(gradient), as_rows(total), plain(weight)
    by_total, by_x = np.empty_like(totals), np.empty_like(totals)
    bias_sums, weight_sums, shift_sums = (block_sums(*totals.shape) for _ in range(3))
    arguments = dropout_arguments(dropout, len(totals) // max(1, len(total)))

    def work(blocks: slice) -> None:
        part = rows_of(blocks)
        inputs = gradients[part], totals[part], weight, mean[part], reciprocal[part]
        outputs = by_total[part], by_x[part], bias_sums[blocks], weight_sums[blocks], shift_sums[blocks]
        _dropout_add_layer_norm_gradient(*inputs, *outputs, *arguments.of_rows(part))

    threads.split(len(bias_sums), totals.size, work)
    for sums, target in ((bias_sums, by_bias), (weight_sums, by_weight), (shift_sums, by_shift)):
        put(sums.sum(axis=0), target)
    return by_x.reshape(total.shape), by_total.reshape(total.shape)


def _column(rows: Array) -> Array:
    return np.empty((len(rows), 1), np.float32)
