"""Rounding from float32 to bfloat16. On a GPU products never round their inputs: bfloat16 runs have bfloat16 arrays."""

import ml_dtypes
import numpy as np

from lucid.backend import Array
from lucid.kernels.cuda import launching
from lucid.kernels.cuda.arrays import empty, plain
from lucid.kernels.cuda.compiling import Variant, variant
from lucid.kernels.cuda.launching import blocks_of, vector_width

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

_THREADS = 256


def form(vector: int) -> Variant:
    """Return the program of the cast."""
    return variant("casting", "float32", vector, THREADS=_THREADS)


def product_input(x: Array) -> Array:
    return x


def round_to_bfloat16(x: Array, out: Array | None = None) -> Array:
    x = plain(x)
    y = empty(x, *x.shape, dtype=BFLOAT16) if out is None else out
    vector = vector_width(x.size, x, y)
    launching.launch(
        form(vector), "round_to_bfloat16", (blocks_of(x.size, _THREADS * vector),), (_THREADS,), x, y, np.int64(x.size)
    )
    return y
