"""Cross-entropy over a wide vocabulary: each row of logits stays in the cache from pass to pass."""

import math

import numpy as np
from numba import types

from lucid.backend import Array
from lucid.kernels import threads
from lucid.kernels.cpu.arrays import as_rows, plain
from lucid.kernels.cpu.compiling import kernel, part, read, reduction, write
from lucid.kernels.cpu.mathematics import LEAST, ONE, ZERO, exp, number_at, order_of


@part
def _greatest(row: Array, least: np.float32) -> np.float32:
    """Return the greatest number of a row and `least`."""
    most = order_of(least)
    for column in range(row.shape[0]):
        most = max(most, order_of(row[column]))
    return number_at(most)


@reduction
def _sum_of_exponentials(row: Array, shift: np.float32) -> np.float32:
    total = ZERO
    for column in range(row.shape[0]):
        total += exp(row[column] - shift)
    return total


@kernel(read(2), read(1, types.int64), types.int64, types.int64, write(1), write(1))
def _cross_entropy(
    logits: Array, labels: Array, ignore_index: int, vocabulary: int, losses: Array, log_sum: Array
) -> None:
    for row in range(logits.shape[0]):
        own, label = logits[row, :vocabulary], labels[row]
        greatest = _greatest(own, LEAST)
        log_sum[row] = np.float32(math.log(np.float64(_sum_of_exponentials(own, greatest)))) + greatest
        losses[row] = ZERO if label == ignore_index else log_sum[row] - own[label]


@kernel(read(1), read(2), read(1, types.int64), read(1), types.int64, types.int64, write(2))
def _cross_entropy_gradient(
    gradient: Array, logits: Array, labels: Array, log_sum: Array, ignore_index: int, vocabulary: int, y: Array
) -> None:
    for row in range(logits.shape[0]):
        source, target, label = logits[row, :vocabulary], y[row], labels[row]
        counts = label != ignore_index
        weight, shift = gradient[row] if counts else ZERO, log_sum[row]
        for column in range(source.shape[0]):
            target[column] = exp(source[column] - shift) * weight
        if counts:
            target[label] = (exp(source[label] - shift) - ONE) * weight
        target[vocabulary:] = ZERO


def cross_entropy(
    logits: Array, labels: Array, ignore_index: int, vocabulary: int | None = None
) -> tuple[Array, Array]:
    logits, labels = plain(logits), plain(labels, np.int64)
    counted = logits.shape[1] if vocabulary is None else vocabulary
    losses, log_sum = np.empty(len(labels), np.float32), np.empty(len(labels), np.float32)

    def work(part: slice) -> None:
        _cross_entropy(logits[part], labels[part], ignore_index, counted, losses[part], log_sum[part])

    threads.split(len(logits), logits.size, work)
    return losses, log_sum


def cross_entropy_gradient(
    gradient: Array,
    logits: Array,
    labels: Array,
    log_sum: Array,
    ignore_index: int,
    vocabulary: int | None = None,
) -> Array:
    gradient, logits, labels, log_sum = plain(gradient), plain(logits), plain(labels, np.int64), plain(log_sum)
    counted = logits.shape[1] if vocabulary is None else vocabulary
    y = np.empty_like(logits)

    def work(part: slice) -> None:
        arguments = gradient[part], logits[part], labels[part], log_sum[part]
        _cross_entropy_gradient(*arguments, ignore_index, counted, y[part])

    threads.split(len(logits), logits.size, work)
    return y


@kernel(read(2), types.int64, write(1, types.int64))
def _argmax(x: Array, vocabulary: int, places: Array) -> None:
    for row in range(x.shape[0]):
        own, place = x[row, :vocabulary], -1
        greatest = _greatest(own, own[0])
        for column in range(vocabulary):
            # NaN counts as the greatest number, as in NumPy.
            if own[column] != own[column]:
                place = column
                break
            if place < 0 and own[column] >= greatest:
                place = column
        places[row] = place


def argmax(x: Array, vocabulary: int | None = None) -> Array:
    rows = as_rows(x)
    counted, places = rows.shape[1] if vocabulary is None else vocabulary, np.empty(len(rows), np.int64)
    threads.split(len(rows), rows.size, lambda part: _argmax(rows[part], counted, places[part]))
    return places.reshape(x.shape[:-1])
