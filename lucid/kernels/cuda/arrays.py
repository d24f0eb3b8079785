"""Conversion of arrays to the form that kernels take: C order, on one device."""

from typing import Any

import numpy as np

from lucid.backend import Array, array_module
from lucid.kernels.cuda.launching import is_aligned


def plain(x: Array, dtype: Any = None) -> Array:
    """Return `x` in C order and in this dtype (by default its own), without a copy if it has both."""
    return array_module(x).ascontiguousarray(x, x.dtype if dtype is None else dtype)


def as_rows(x: Array, like: Array | None = None) -> Array:
    """Return x [..., C] as [N, C], in C order, in the dtype of `like` if given."""
    return plain(x, None if like is None else like.dtype).reshape(-1, x.shape[-1])


def parameter(x: Array) -> Array:
    """Return a parameter or a statistic in C order as float32, which these are with rows of either type."""
    return plain(x, np.float32)


def empty(like: Array, *shape: int, dtype: Any = np.float32) -> Array:
    """Return a new array on the device of `like`."""
    return array_module(like).empty(shape, dtype)


def aligned(x: Array) -> Array:
    """Return x in C order at an address that allows the widest reads, without a copy if it has both."""
    x = plain(x)
    return x if is_aligned(x) else x.copy()
