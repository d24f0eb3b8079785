"""Views that need not be part of the array that they are of."""

from typing import Any

from cupy._array import ndarray


def as_strided(x: ndarray, shape: Any = None, strides: Any = None) -> ndarray:
    return ndarray(x.shape if shape is None else shape, x.dtype, x.data, x.strides if strides is None else strides)
