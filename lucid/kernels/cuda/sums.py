"""Sums over rows, and sums of squares over a whole buffer."""

import numpy as np

from lucid.backend import Array
from lucid.kernels.cuda import launching
from lucid.kernels.cuda.arrays import as_rows, empty, plain
from lucid.kernels.cuda.compiling import Variant, variant
from lucid.kernels.cuda.launching import ROWS, WARP, blocks_of, host_bounds, vector_width
from lucid.kernels.targets import Target, put

_GROUPS, _BLOCK_GROUPS, _THREADS_OF_BLOCK = 8, 16, 256
_THREADS_OF_ROOT = 512
# The most sums over the same rows that one launch computes.
_MOST_KINDS = 3


def form(element: str, vector: int) -> Variant:
    """Return the program of these sums."""
    shape = {"LANES": WARP, "GROUPS": _GROUPS, "ROWS": ROWS}
    shape |= {"BLOCK_GROUPS": _BLOCK_GROUPS, "THREADS_OF_BLOCK": _THREADS_OF_BLOCK, "THREADS_OF_ROOT": _THREADS_OF_ROOT}
    return variant("sums", element, vector, **shape)


def add_blocks(sums: Array, *targets: Target | None) -> None:
    """Sum sums [K, blocks, C] (float32) over the blocks, in their order, into K targets [C]; K is at most 3."""
    kinds, blocks, width = sums.shape
    outs: list[Array | None] = [None] * _MOST_KINDS
    added, others = 0, []
    for kind, target in enumerate(targets):
        if target is None:
            continue
        if target.out.dtype == np.float32 and target.out.flags.c_contiguous:
            outs[kind] = target.out
            added |= target.accumulate << kind
        else:
            outs[kind] = made = empty(sums, width)
            others.append((made, target))
    if all(out is None for out in outs):
        return
    grid, arguments = (blocks_of(width, WARP), kinds), (sums, *outs, np.int32(added), np.int32(blocks), np.int32(width))
    launching.launch(form("float32", 1), "block_sums", grid, (WARP, _BLOCK_GROUPS), *arguments)
    for made, target in others:
        put(made, target)


def linear_bias_gradient(gradient: Array, by_bias: Target) -> None:
    x = as_rows(gradient)
    rows, width = x.shape
    vector = vector_width(width, x)
    sums = empty(x, 1, blocks_of(rows, ROWS), width)
    grid, arguments = (sums.shape[1], blocks_of(width, WARP * vector)), (x, sums, np.int64(rows), np.int32(width))
    launching.launch(form(x.dtype.name, vector), "column_sums", grid, (WARP, _GROUPS), *arguments)
    add_blocks(sums, by_bias)


def squared_sums(x: Array, bounds: Array) -> Array:
    x = plain(x)
    blocks, vector = host_bounds(bounds, x)
    sums = empty(x, len(bounds) - 1, dtype=np.float64)
    launching.launch(form(x.dtype.name, vector), "squared_sums", (len(sums),), (_THREADS_OF_BLOCK,), x, blocks, sums)
    return sums


def root_of_sum(sums: Array) -> Array:
    root = empty(sums, dtype=np.float64)
    arguments = plain(sums), root, np.int64(sums.size)
    launching.launch(form("float32", 1), "root_of_sum", (1,), (_THREADS_OF_ROOT,), *arguments)
    return root
