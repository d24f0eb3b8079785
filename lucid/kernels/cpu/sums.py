"""Sums: along a row, over the rows, and over a whole buffer.

They do not depend on how the work is split. Along a row the order of additions follows from its length; over rows,
blocks of a fixed size are summed, and then their sums in order; over a buffer, blocks that the caller says.
"""

import numpy as np
from numba import types

from lucid.backend import Array
from lucid.kernels import threads
from lucid.kernels.cpu.arrays import as_rows, plain
from lucid.kernels.cpu.compiling import kernel, part, read, reduction, write
from lucid.kernels.cpu.mathematics import ZERO, number_of

ROWS = 64


@reduction
def row_sum(row: Array) -> np.float32:
    """Return the sum of a row."""
    total = ZERO
    for column in range(row.shape[0]):
        total += row[column]
    return total


@reduction
def squares_around(row: Array, mean: np.float32) -> np.float32:
    """Return the sum of the squared differences from `mean`."""
    total = ZERO
    for column in range(row.shape[0]):
        difference = row[column] - mean
        total += difference * difference
    return total


@reduction
def row_product(row: Array, other: Array) -> np.float32:
    """Return the inner product of two rows."""
    total = ZERO
    for column in range(row.shape[0]):
        total += row[column] * other[column]
    return total


@reduction
def double_squares(x: Array) -> float:
    """Return the sum of squares in double precision."""
    total = 0.0
    for element in range(x.shape[0]):
        total += np.float64(x[element]) * np.float64(x[element])
    return total


@part
def add_to(sums: Array, row: Array) -> None:
    """Add a row to the sums of its columns."""
    for column in range(row.shape[0]):
        sums[column] += row[column]


@part
def add_four_to(sums: Array, one: Array, two: Array, three: Array, four: Array) -> None:
    """Add four rows to the sums of their columns, which are read and written once."""
    for column in range(sums.shape[0]):
        sums[column] += (one[column] + two[column]) + (three[column] + four[column])


def block_sums(rows: int, width: int) -> Array:
    """Return zeros for the sums of the columns in each block of `ROWS` rows."""
    return np.zeros((-(-rows // ROWS), width), np.float32)


def rows_of(blocks: slice) -> slice:
    """Return the rows that these blocks are made of."""
    return slice(blocks.start * ROWS, blocks.stop * ROWS)


@kernel(read(2), write(2))
def _column_sums(x: Array, sums: Array) -> None:
    whole = x.shape[0] // 4 * 4
    for row in range(0, whole, 4):
        add_four_to(sums[row // ROWS], x[row], x[row + 1], x[row + 2], x[row + 3])
    for row in range(whole, x.shape[0]):
        add_to(sums[row // ROWS], x[row])


@kernel(read(2, types.uint16), write(2))
def _sums_of_bfloat16_columns(x: Array, sums: Array) -> None:
    for row in range(x.shape[0]):
        source, target = x[row], sums[row // ROWS]
        for column in range(target.shape[0]):
            target[column] += number_of(np.int32(np.uint32(source[column]) << np.uint32(16)))


def linear_bias_gradient(gradient: Array) -> Array:
    x, column_sums = as_rows(gradient, gradient.dtype), _column_sums
    if x.dtype != np.float32:
        x, column_sums = x.view(np.uint16), _sums_of_bfloat16_columns
    sums = block_sums(*x.shape)
    threads.split(len(sums), x.size, lambda blocks: column_sums(x[rows_of(blocks)], sums[blocks]))
    return sums.sum(axis=0)


@kernel(read(1), read(1, types.int64), write(1, types.float64))
def _squared_sums(x: Array, bounds: Array, sums: Array) -> None:
    for block in range(sums.shape[0]):
        sums[block] = double_squares(x[bounds[block] : bounds[block + 1]])


def squared_sums(x: Array, bounds: Array) -> Array:
    x, sums = plain(x), np.empty(len(bounds) - 1)
    threads.split(len(sums), len(x), lambda blocks: _squared_sums(x, bounds_of(blocks, bounds), sums[blocks]))
    return sums


def bounds_of(blocks: slice, bounds: Array) -> Array:
    """Return the bounds of some of the blocks."""
    return bounds[blocks.start : blocks.stop + 1]
