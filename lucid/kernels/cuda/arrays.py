"""What kernels take: arrays in C order, of one device."""

from typing import Any

import numpy as np

from lucid.backend import Array, array_module
from lucid.kernels.cuda.launching import is_aligned


def plain(x: Array, dtype: Any = None) -> Array:
    """Return `x` in C order and of this dtype, its own by default: itself, or a copy where it is not."""
    return array_module(x).ascontiguousarray(x, x.dtype if dtype is None else dtype)


def as_rows(x: Array, like: Array | None = None) -> Array:
    """Return x [..., C] as [N, C], in C order, and in the dtype of `like` if that is given."""
    return plain(x, None if like is None else like.dtype).reshape(-1, x.shape[-1])


def parameter(x: Array) -> Array:
    """Return a parameter in C order. Whatever rows consist of, parameters and statistics are float32."""
    return plain(x, np.float32)


def empty(like: Array, *shape: int, dtype: Any = np.float32) -> Array:
    """Return a new array on the device of `like`."""
    return array_module(like).empty(shape, dtype)


def aligned(x: Array) -> Array:
    """Return x in C order, beginning where threads may read as much as they can at once: itself, or a copy."""
    x = plain(x)
    return x if is_aligned(x) else x.copy()
