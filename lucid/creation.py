"""Tensors of a given shape: zeros, ones, and normal random numbers."""

from typing import Any

import numpy as np

from lucid import backend, random
from lucid.autograd import Tensor
from lucid.nn.init import normal_quantile


def zeros(*shape: Any, dtype: Any = np.float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Return a tensor of zeros; `shape` is given as numbers or as a tuple.

    `device` is "cpu", "cuda" or "cuda:N". Raises `ConfigError` if this machine has no such device.
    """
    return _filled(0, shape, dtype, device, requires_grad)


def ones(*shape: Any, dtype: Any = np.float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Return a tensor of ones, as `zeros` does."""
    return _filled(1, shape, dtype, device, requires_grad)


def randn(*shape: Any, dtype: Any = np.float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Return a tensor of numbers from the standard normal distribution; the other arguments are those of `zeros`.

    They follow from `manual_seed` and the number of calls since, alike on every device.
    """
    shape = _shape(shape)
    words = random.random_words(random.Purpose.BY_HAND, random.coordinates_by_hand(rows=1), int(np.prod(shape)))
    values = normal_quantile(random.uniform(words[0])).reshape(shape)
    return Tensor(backend.to_device(values.astype(dtype), device), requires_grad)


def _filled(value: int, shape: tuple[Any, ...], dtype: Any, device: str, requires_grad: bool) -> Tensor:
    shape = _shape(shape)
    data = backend.zeros(int(np.prod(shape)), dtype, device).reshape(shape)
    data[...] = value
    return Tensor(data, requires_grad)


def _shape(given: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(given[0]) if len(given) == 1 and not isinstance(given[0], int | np.integer) else given
