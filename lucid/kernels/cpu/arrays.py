"""What kernels take: arrays in C order."""

from typing import Any

import numpy as np

from lucid.backend import Array


def plain(x: Array, dtype: Any = np.float32) -> Array:
    """Return `x` in C order and of this dtype: itself, or a copy where it is not."""
    return np.ascontiguousarray(x, dtype)


def as_rows(x: Array, dtype: Any = np.float32) -> Array:
    """Return x [..., C] as [N, C], in C order and of this dtype."""
    return plain(x, dtype).reshape(-1, x.shape[-1])
