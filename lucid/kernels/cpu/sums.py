"""Sums along a row, over the rows, and over a whole buffer.

They do not depend on the division of the work. Along a row the order of additions follows from its length. Over rows,
the sums of blocks of a fixed size are added in order. Over a buffer, the caller defines the blocks.
"""

import numpy as np
from numba import types
from numpy.lib.stride_tricks import as_strided

from lucid.backend import Array
from lucid.kernels import threads
from lucid.kernels.cpu.arrays import as_rows, plain
from lucid.kernels.cpu.compiling import kernel, part, read, reduction, write
from lucid.kernels.cpu.mathematics import ZERO, number_of
from lucid.kernels.targets import Target, put

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
    """Add four rows to the sums of their columns, reading and writing the sums once."""
    for column in range(sums.shape[0]):
        sums[column] += (one[column] + two[column]) + (three[column] + four[column])


def block_sums(rows: int, width: int) -> Array:
    """Return zeros for the sums of the columns in each block of `ROWS` rows."""
    return np.zeros((-(-rows // ROWS), width), np.float32)


def rows_of(blocks: slice) -> slice:
    """Return the rows of these blocks."""
    return slice(blocks.start * ROWS, blocks.stop * ROWS)


@part
def _row(x: Array, row: int, stride: int, width: int) -> Array:
    """Return a row of the matrix in x [elements], whose rows begin `stride` elements apart."""
    return x[row * stride : row * stride + width]


@kernel(read(1), types.int64, types.int64, write(2))
def _column_sums(x: Array, stride: int, rows: int, sums: Array) -> None:
    width, whole = sums.shape[1], rows // 4 * 4
    for row in range(0, whole, 4):
        one, two = _row(x, row, stride, width), _row(x, row + 1, stride, width)
        three, four = _row(x, row + 2, stride, width), _row(x, row + 3, stride, width)
        add_four_to(sums[row // ROWS], one, two, three, four)
    for row in range(whole, rows):
        add_to(sums[row // ROWS], _row(x, row, stride, width))


@kernel(read(1, types.uint16), types.int64, types.int64, write(2))
def _sums_of_bfloat16_columns(x: Array, stride: int, rows: int, sums: Array) -> None:
    for row in range(rows):
        source, target = _row(x, row, stride, sums.shape[1]), sums[row // ROWS]
        for column in range(target.shape[0]):
            target[column] += number_of(np.int32(np.uint32(source[column]) << np.uint32(16)))


def linear_bias_gradient(gradient: Array, by_bias: Target) -> None:
    x, stride = _elements(gradient)
    width = gradient.shape[-1]
    count, column_sums = gradient.size // width, _column_sums
    sums = block_sums(count, width)
    if x.dtype != np.float32:
        x, column_sums = x.view(np.uint16), _sums_of_bfloat16_columns

    def add(blocks: slice) -> None:
        rows = range(count)[rows_of(blocks)]
        column_sums(x[rows.start * stride :], stride, len(rows), sums[blocks])

    threads.split(len(sums), gradient.size, add)
    put(sums.sum(axis=0), by_bias)


def _elements(x: Array) -> tuple[Array, int]:
    """Return the memory of x [..., C] as a flat array, and the number of elements between its rows.

    Some columns of a matrix in C order are not copied.
    """
    if x.ndim == 2 and len(x) and x.strides[1] == x.itemsize and x.strides[0] >= x.shape[1] * x.itemsize:
        stride = x.strides[0] // x.itemsize
        return as_strided(x, ((len(x) - 1) * stride + x.shape[1],), (x.itemsize,)), stride
    return as_rows(x, x.dtype).reshape(-1), x.shape[-1]


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
