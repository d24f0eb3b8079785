"""Products of linear layers and attention: by oneDNN where it is installed, in float32 or bfloat16, or by NumPy's BLAS.

In bfloat16 the operands are rounded and the products added in float32: weights, activations and gradients stay
float32 arrays. What lies between the products of attention is rounded by the product that makes it.
"""

from itertools import product

import numpy as np
from numba import types

from lucid.backend import Array
from lucid.errors import ConfigError
from lucid.kernels import reference, threads
from lucid.kernels.cpu import onednn
from lucid.kernels.cpu.arrays import plain
from lucid.kernels.cpu.compiling import kernel, read, write
from lucid.kernels.cpu.sums import linear_bias_gradient

# Multiply-adds that take about as long as going through one element does.
_OPERATIONS_AN_ELEMENT = 16
# Threads share columns, in blocks of this many, rather than rows: each then packs its own part of the right factor.
_COLUMNS = 64
# oneDNN is faster with some columns after others than with very many at once: by a quarter in float32 for 3,072.
_COLUMNS_AT_ONCE = 1536
# So it is with rows, and addends: a third with the 30,522 of a vocabulary.
_AT_ONCE = 4096

_precision = "float32"


def set_precision(precision: str) -> str | None:
    """Let products take operands of this precision, as `lucid.kernels.set_precision` says."""
    global _precision
    warning = None
    if precision == "bfloat16":
        warning = _check_bfloat16()
    _precision = precision
    return warning


def _check_bfloat16() -> str | None:
    if not onednn.is_installed():
        raise ConfigError(f"bfloat16 products on the CPU need oneDNN: pip install {onednn.WHEEL}, or choose float32")
    ones = np.ones((1, 1), onednn.BFLOAT16)
    try:
        onednn.multiply(ones, ones, np.empty((1, 1), np.float32))
    except onednn.Unimplemented as error:
        raise ConfigError("oneDNN has no bfloat16 products for this processor: choose float32") from error
    if onednn.has_bfloat16_instructions():
        return None
    return "this processor has no bfloat16 instructions: products in bfloat16 are slower here than in float32"


def library_name() -> str:
    """Return which library computes the products, with its version."""
    return onednn.name() if onednn.is_installed() else "NumPy's"


@kernel(read(1, types.uint32), write(1, types.uint16))
def _round(x: Array, y: Array) -> None:
    """Round float32 to bfloat16, to the nearest, ties to even; what is not a number stays so."""
    for element in range(x.shape[0]):
        bits = x[element]
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        is_number = (bits & np.uint32(0x7FFFFFFF)) <= np.uint32(0x7F800000)
        kept = rounded if is_number else np.uint32(bits | np.uint32(0x00400000))
        y[element] = np.uint16(kept >> np.uint32(16))


def operand(x: Array) -> Array:
    if x.dtype == onednn.BFLOAT16 or _precision == "float32":
        return x
    source, y = plain(x).reshape(-1).view(np.uint32), np.empty(x.shape, onednn.BFLOAT16)
    target = y.reshape(-1).view(np.uint16)
    threads.split(x.size, x.size, lambda part: _round(source[part], target[part]))
    return y


def operand_alone(x: Array) -> Array:
    """Return `operand` of x, which is in C order, by this thread alone."""
    if _precision == "float32":
        return x
    y = np.empty(x.shape, onednn.BFLOAT16)
    _round(x.reshape(-1).view(np.uint32), y.reshape(-1).view(np.uint16))
    return y


def multiply_alone(left: Array, right: Array, out: Array) -> None:
    """Write left [G, M, K] times right [G, K, N], two operands, to out [G, M, N], by this thread alone."""
    if onednn.is_installed():
        onednn.multiply(left, right, out)
    else:
        np.matmul(left, right, out=out)


def linear(x: Array, weight: Array, bias: Array | None, out: Array | None = None) -> Array:
    if not onednn.is_installed():
        return reference.linear(x, weight, bias, out)
    rows = _rows(x)
    y = np.empty((len(rows), len(weight)), np.float32) if out is None else out
    _multiply(rows, _matrix(weight).T, y, bias if bias is None else plain(bias))
    return y.reshape(*x.shape[:-1], len(weight)) if out is None else out


def linear_input_gradient(gradient: Array, weight: Array, total: Array | None = None) -> Array:
    if not onednn.is_installed():
        return reference.linear_input_gradient(gradient, weight, total)
    rows = _rows(gradient)
    y = np.empty((len(rows), weight.shape[1]), np.float32) if total is None else total
    _multiply(rows, _matrix(weight), y, accumulate=total is not None)
    return y.reshape(*gradient.shape[:-1], weight.shape[1])


def linear_weight_gradient(
    gradient: Array, x: Array, out: Array, accumulate: bool, bias_sums: Array | None = None
) -> None:
    if onednn.is_installed():
        _multiply(_rows(gradient).T, _rows(x), out, accumulate=accumulate)
    else:
        reference.linear_weight_gradient(gradient, x, out, accumulate)
    if bias_sums is not None:
        bias_sums[...] = linear_bias_gradient(gradient)


def _matrix(x: Array) -> Array:
    """Return x in C order, as an operand; some columns of such an array stay where they are."""
    rounded = operand(x)
    in_rows = rounded.ndim == 2 and rounded.strides[1] == rounded.itemsize and rounded.strides[0] > 0
    return rounded if in_rows else np.ascontiguousarray(rounded)


def _rows(x: Array) -> Array:
    matrix = _matrix(x)
    return matrix if matrix.ndim == 2 else matrix.reshape(-1, x.shape[-1])


def _multiply(left: Array, right: Array, out: Array, bias: Array | None = None, accumulate: bool = False) -> None:
    """Write (or add) left [M, K] times right [K, N], plus bias [N], to out [M, N]."""
    (M, N), K = out.shape, left.shape[1]
    if out.size == 0 or K == 0:
        if not accumulate:
            out[...] = 0 if bias is None else bias
        return

    def work(blocks: slice) -> None:
        columns = _parts(blocks.start * _COLUMNS, min(N, blocks.stop * _COLUMNS), _COLUMNS_AT_ONCE)
        for part, rows, addends in product(columns, _parts(0, M, _AT_ONCE), _parts(0, K, _AT_ONCE)):
            first = addends.start == 0
            onednn.multiply(
                left[rows, addends], right[addends, part], out[rows, part],
                bias[part] if first and bias is not None else None, accumulate or not first,
            )  # fmt: skip

    threads.split(-(-N // _COLUMNS), out.size * K // _OPERATIONS_AN_ELEMENT, work)


def _parts(start: int, stop: int, most: int) -> list[slice]:
    """Return slices of at most so many numbers that make up `range(start, stop)`."""
    return [slice(first, min(stop, first + most)) for first in range(start, stop, most)]
