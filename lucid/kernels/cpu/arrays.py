"""Conversion of arrays to the form that kernels take: C order."""

from typing import Any

import numpy as np

from lucid.backend import Array


def plain(x: Array, dtype: Any = np.float32) -> Array:
    """Return `x` in C order and in this dtype, without a copy if it has both."""
    return np.ascontiguousarray(x, dtype)


def as_rows(x: Array, dtype: Any = np.float32) -> Array:
    """Return x [..., C] as [N, C], in C order and of this dtype."""
    return plain(x, dtype).reshape(-1, x.shape[-1])
