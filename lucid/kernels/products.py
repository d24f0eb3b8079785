"""Products of linear layers on the CPU: with oneDNN if it is installed, in float32 or bfloat16, or with NumPy's BLAS.

In bfloat16 the factors are rounded, and the products accumulate in float32. These functions multiply their inputs as
they are, rounded or not, and need no compiled kernels. `cpu/gemm.py` rounds inputs and sums the gradients of biases.
"""

from itertools import product

import numpy as np

from lucid.backend import Array
from lucid.errors import ConfigError
from lucid.kernels import onednn, reference, threads
from lucid.kernels.targets import Target

# The number of multiply-adds that take about as long as processing one element.
_OPERATIONS_AN_ELEMENT = 16
# Threads divide columns, in blocks of this many, and not rows: each then packs its own part of the right factor.
_COLUMNS = 64
# oneDNN is faster with fewer columns at once: by a quarter in float32 for 3,072.
_COLUMNS_AT_ONCE = 1536
# The same holds for rows and for the inner dimension: by a third for the 30,522 of a vocabulary.
_AT_ONCE = 4096

_precision = "float32"


def set_precision(precision: str) -> str | None:
    """Round the inputs of products to this precision: see `lucid.kernels.set_precision`."""
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


def rounds() -> bool:
    """Return whether products round their inputs to bfloat16."""
    return _precision == "bfloat16"


def library_name() -> str:
    """Return the name and version of the library that computes the products."""
    return onednn.name() if onednn.is_installed() else "NumPy's"


def product_input(x: Array) -> Array:
    """Return x like `Kernels.product_input`, rounded by NumPy, which is slower."""
    return reference.round_to_bfloat16(x) if rounds() and x.dtype != onednn.BFLOAT16 else x


def linear(x: Array, weight: Array, bias: Array | None, out: Array | None = None) -> Array:
    if not onednn.is_installed():
        return reference.linear(x, weight, bias, out)
    rows = _rows(x)
    y = np.empty((len(rows), len(weight)), np.float32) if out is None else out
    _multiply(rows, _matrix(weight).T, y, bias)
    return y.reshape(*x.shape[:-1], len(weight)) if out is None else out


def linear_input_gradient(
    gradient: Array, weight: Array, addend: Array | None = None, out: Array | None = None
) -> Array:
    if not onednn.is_installed():
        return reference.linear_input_gradient(gradient, weight, addend, out)
    y = np.empty((*gradient.shape[:-1], weight.shape[1]), np.float32) if out is None else out
    if addend is not None and addend is not y:
        y[...] = addend
    rows = _rows(gradient)
    _multiply(rows, _matrix(weight), y.reshape(len(rows), weight.shape[1]), accumulate=addend is not None)
    return y


def linear_weight_gradient(gradient: Array, x: Array, by_weight: Target) -> None:
    if onednn.is_installed():
        _multiply(_rows(gradient).T, _rows(x), by_weight.out, accumulate=by_weight.accumulate)
    else:
        reference.linear_weight_gradient(gradient, x, by_weight)


def _matrix(x: Array) -> Array:
    """Return x in C order, without a copy if it is some columns of an array in C order."""
    in_rows = x.ndim == 2 and x.strides[1] == x.itemsize and x.strides[0] > 0
    return x if in_rows else np.ascontiguousarray(x)


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
            of_part = bias[part] if first and bias is not None else None
            factors = left[rows, addends], right[addends, part]
            onednn.multiply(*factors, out[rows, part], of_part, accumulate or not first)

    threads.split(-(-N // _COLUMNS), out.size * K // _OPERATIONS_AN_ELEMENT, work)


def _parts(start: int, stop: int, most: int) -> list[slice]:
    """Return slices of length `most` or less that cover `range(start, stop)`."""
    return [slice(first, min(stop, first + most)) for first in range(start, stop, most)]
