"""Activations and dropout."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from lucid.backend import Array, array_module, special_functions
from lucid.kernels.arguments import Dropout
from lucid.kernels.catalogue.elementwise import Activation
from lucid.kernels.reference.rows import as_rows
from lucid.kernels.targets import Target, put
from lucid.random import keep_threshold, random_words

_SQRT_TWO_OVER_PI = math.sqrt(2 / math.pi)
_GELU_CUBIC = 0.044715


def activation(x: Array, bias: Array | None, kind: Activation) -> Array:
    xp = array_module(x)
    if bias is not None:
        x = x + bias
    if kind == "relu":
        return xp.maximum(x, 0)
    if kind == "gelu":
        return x * special_functions(x).ndtr(x)
    y = xp.tanh(_SQRT_TWO_OVER_PI * (x + _GELU_CUBIC * x * x * x))
    y += 1
    y *= x
    y *= 0.5
    return y


def activation_gradient(
    gradient: Array, x: Array, bias: Array | None, kind: Activation, by_bias: Target | None
) -> Array:
    y = gradient * _activation_slope(x if bias is None else x + bias, kind)
    put(as_rows(y).sum(axis=0), by_bias)
    return y


def _activation_slope(x: Array, kind: Activation) -> Array:
    xp = array_module(x)
    if kind == "relu":
        return x > 0
    if kind == "gelu":
        density = xp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return special_functions(x).ndtr(x) + x * density
    tanh = xp.tanh(_SQRT_TWO_OVER_PI * (x + _GELU_CUBIC * x * x * x))
    slope = _SQRT_TWO_OVER_PI * (1 + 3 * _GELU_CUBIC * x * x)
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * slope


def dropout(x: Array, dropout: Dropout) -> Array:
    if dropout.coordinates is None:
        return x
    counters = array_module(x).asarray(dropout.coordinates.counters)
    words = random_words(dropout.purpose, replace(dropout.coordinates, counters=counters), x[0].size)
    y = keep_factors(words.reshape(x.shape), x.dtype, dropout.probability)
    y *= x
    return y


def keep_factors(words: Array, dtype: Any, probability: float) -> Array:
    """Return for each word the factor of its element, in `dtype`: 0, or 1 / (1 - probability)."""
    kept = (words >= np.uint32(keep_threshold(probability))).astype(dtype)
    kept *= 1 / (1 - probability)
    return kept
