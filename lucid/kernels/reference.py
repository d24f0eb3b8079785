"""Every kernel of the catalogue as plain formulas over the array module: the truth that fast versions are tested on.

Signatures and shapes are described in `lucid.kernels.Kernels`.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np

from lucid.backend import Array, array_module, special_functions
from lucid.kernels.sequences import Sequences
from lucid.kernels.targets import Target, put
from lucid.random import Coordinates, keep_threshold, random_words

_SQRT_TWO_OVER_PI = math.sqrt(2 / math.pi)
_GELU_CUBIC = 0.044715
# AdamW goes block by block, so that the temporaries stay in a core's cache.
_BLOCK = 65_536


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def product_input(x: Array) -> Array:
    return x


def linear(x: Array, weight: Array, bias: Array | None, out: Array | None = None) -> Array:
    y = array_module(x).matmul(_rows(x), weight.T)
    if bias is not None:
        y += bias
    if out is None:
        return y.reshape(*x.shape[:-1], len(weight))
    out[...] = y
    return out


def linear_input_gradient(
    gradient: Array, weight: Array, addend: Array | None = None, out: Array | None = None
) -> Array:
    y = array_module(gradient).matmul(_rows(gradient), weight).reshape(*gradient.shape[:-1], weight.shape[1])
    if addend is not None:
        y += addend
    if out is None:
        return y
    out[...] = y
    return out


def linear_weight_gradient(gradient: Array, x: Array, by_weight: Target, by_bias: Target | None = None) -> None:
    xp, (out, accumulate) = array_module(gradient), by_weight
    if accumulate:
        out += xp.matmul(_rows(gradient).T, _rows(x))
    else:
        xp.matmul(_rows(gradient).T, _rows(x), out=out)
    if by_bias is not None:
        linear_bias_gradient(gradient, by_bias)


def linear_bias_gradient(gradient: Array, by_bias: Target) -> None:
    put(_rows(gradient).sum(axis=0), by_bias)


def activation(x: Array, bias: Array | None, kind: str) -> Array:
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


def activation_gradient(gradient: Array, x: Array, bias: Array | None, kind: str, by_bias: Target | None) -> Array:
    y = gradient * _activation_slope(x if bias is None else x + bias, kind)
    put(_rows(y).sum(axis=0), by_bias)
    return y


def _activation_slope(x: Array, kind: str) -> Array:
    xp = array_module(x)
    if kind == "relu":
        return x > 0
    if kind == "gelu":
        density = xp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return special_functions(x).ndtr(x) + x * density
    tanh = xp.tanh(_SQRT_TWO_OVER_PI * (x + _GELU_CUBIC * x * x * x))
    slope = _SQRT_TWO_OVER_PI * (1 + 3 * _GELU_CUBIC * x * x)
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * slope


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    xp = array_module(x)
    rows = _rows(x)
    mean = rows.mean(axis=1, keepdims=True)
    y = rows - mean
    reciprocal = 1 / xp.sqrt((y * y).mean(axis=1, keepdims=True) + epsilon)
    y *= reciprocal
    y *= weight
    y += bias
    return y.reshape(x.shape), mean, reciprocal


def layer_norm_gradient(
    gradient: Array,
    x: Array,
    weight: Array,
    mean: Array,
    reciprocal: Array,
    by_weight: Target | None,
    by_bias: Target | None,
) -> Array:
    rows = _rows(gradient)
    normalised = (_rows(x) - mean) * reciprocal
    put((rows * normalised).sum(axis=0), by_weight)
    put(rows.sum(axis=0), by_bias)
    scaled = rows * weight
    along = (scaled * normalised).mean(axis=1, keepdims=True)
    scaled -= scaled.mean(axis=1, keepdims=True)
    scaled -= normalised * along
    scaled *= reciprocal
    return scaled.reshape(x.shape)


def _dropout_factors(like: Array, probability: float, stream: int, coordinates: Coordinates) -> Array:
    """Return 0 or 1 / (1 - probability) for each element of `like` [B, ...], in its dtype."""
    counters = array_module(like).asarray(coordinates.counters)
    words = random_words(stream, replace(coordinates, counters=counters), like[0].size)
    return _factors(words.reshape(like.shape), like.dtype, probability)


def _factors(words: Array, dtype: Any, probability: float) -> Array:
    kept = (words >= np.uint32(keep_threshold(probability))).astype(dtype)
    kept *= 1 / (1 - probability)
    return kept


def dropout(x: Array, probability: float, stream: int, coordinates: Coordinates) -> Array:
    y = _dropout_factors(x, probability, stream, coordinates)
    y *= x
    return y


def dropout_add_layer_norm(
    x: Array,
    bias: Array,
    residual: Array,
    weight: Array,
    shift: Array,
    epsilon: float,
    probability: float,
    stream: int,
    coordinates: Coordinates | None,
) -> tuple[Array, Array, Array, Array]:
    total = x + bias
    if coordinates is not None:
        total = dropout(total, probability, stream, coordinates)
    total += residual
    y, mean, reciprocal = layer_norm(total, weight, shift, epsilon)
    return y, total, mean, reciprocal


def dropout_add_layer_norm_gradient(
    gradient: Array,
    total: Array,
    weight: Array,
    mean: Array,
    reciprocal: Array,
    probability: float,
    stream: int,
    coordinates: Coordinates | None,
    by_bias: Target | None,
    by_weight: Target | None,
    by_shift: Target | None,
) -> tuple[Array, Array]:
    by_total = layer_norm_gradient(gradient, total, weight, mean, reciprocal, by_weight, by_shift)
    by_x = by_total if coordinates is None else dropout(by_total, probability, stream, coordinates)
    put(_rows(by_x).sum(axis=0), by_bias)
    return by_x, by_total


def embedding(table: Array, ids: Array, addend: Array | None = None) -> Array:
    rows = array_module(table).take(table, ids, axis=0)
    return rows if addend is None else addend + rows


def embedding_gradient(gradient: Array, ids: Array, out: Array, accumulate: bool, padding_id: int | None) -> None:
    ids, rows = ids.reshape(-1), _rows(gradient)
    if not accumulate:
        out[...] = 0
    if padding_id is not None:
        counted = ids != padding_id
        ids, rows = ids[counted], rows[counted]
    array_module(out).add.at(out, ids, rows)


def _split_heads(x: Array, parts: int, heads: int) -> Array:
    """Return x [L, parts x C] as [parts, H, L, C / H]."""
    return x.reshape(len(x), parts, heads, -1).transpose(1, 2, 0, 3)


def _join_heads(*parts: Array) -> Array:
    """Return arrays [H, L, C / H] as one [L, parts x C]."""
    return array_module(parts[0]).stack(parts).transpose(2, 0, 1, 3).reshape(parts[0].shape[1], -1)


def _sequences_with_rows(sequences: Sequences) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and the area of each sequence that is not empty."""
    pairs = zip(sequences.rows, sequences.areas, strict=True)
    return ((rows, area) for rows, area in pairs if rows.start < rows.stop)


def _attention_factors(
    like: Array, first: int, length: int, probability: float, stream: int, coordinates: Coordinates
) -> Array:
    """Return what dropout multiplies like [H, L, L] by: elements of the sample's [H, T, T], where T is `length`.

    Row `first` of `coordinates` is the sequence's first.
    """
    xp, (H, L, _) = array_module(like), like.shape
    position = 0 if coordinates.positions is None else int(coordinates.positions[first])
    places = (xp.arange(H)[:, None] * length + position + xp.arange(L)).reshape(-1)
    counters = xp.full(H * L, int(coordinates.counters[first]))
    words = random_words(stream, Coordinates(coordinates.seed, counters, places), length)
    return _factors(words[:, position : position + L].reshape(like.shape), like.dtype, probability)


def attention(
    joined: Array,
    sequences: Sequences,
    heads: int,
    probability: float,
    stream: int,
    coordinates: Coordinates | None,
) -> tuple[Array, Array]:
    xp = array_module(joined)
    output = xp.empty((len(joined), joined.shape[1] // 3), joined.dtype)
    all_probabilities = xp.empty(heads * sequences.areas[-1].stop, joined.dtype)
    for rows, area in _sequences_with_rows(sequences):
        q, k, v = _split_heads(joined[rows], 3, heads)
        scores = xp.matmul(q, k.swapaxes(-1, -2))
        scores *= 1 / math.sqrt(q.shape[-1])
        if sequences.mask is not None:
            # The least finite number, not minus infinity: a row without any key then comes out uniform, not NaN.
            scores[...] = xp.where(sequences.mask[rows], scores, xp.finfo(scores.dtype).min)
        scores -= scores.max(axis=-1, keepdims=True)
        probabilities = xp.exp(scores, out=scores)
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
        all_probabilities[heads * area.start : heads * area.stop] = probabilities.reshape(-1)
        if coordinates is not None:
            drawn = rows.start, sequences.length, probability, stream, coordinates
            probabilities *= _attention_factors(probabilities, *drawn)
        output[rows] = _join_heads(xp.matmul(probabilities, v))
    return output, all_probabilities


def attention_gradient(
    gradient: Array,
    joined: Array,
    saved: Array,
    sequences: Sequences,
    heads: int,
    probability: float,
    stream: int,
    coordinates: Coordinates | None,
) -> Array:
    xp = array_module(gradient)
    by_joined = xp.empty_like(joined)
    for rows, area in _sequences_with_rows(sequences):
        (g,), (q, k, v) = _split_heads(gradient[rows], 1, heads), _split_heads(joined[rows], 3, heads)
        length = rows.stop - rows.start
        p = saved[heads * area.start : heads * area.stop].reshape(heads, length, length)
        kept, by_probability = p, xp.matmul(g, v.swapaxes(-1, -2))
        if coordinates is not None:
            factors = _attention_factors(p, rows.start, sequences.length, probability, stream, coordinates)
            kept = p * factors
            by_probability *= factors
        by_value = xp.matmul(kept.swapaxes(-1, -2), g)
        by_probability -= (by_probability * p).sum(axis=-1, keepdims=True)
        by_probability *= p
        by_probability *= 1 / math.sqrt(q.shape[-1])
        by_query = xp.matmul(by_probability, k)
        by_key = xp.matmul(by_probability.swapaxes(-1, -2), q)
        by_joined[rows] = _join_heads(by_query, by_key, by_value)
    return by_joined


def cross_entropy(
    logits: Array, labels: Array, ignore_index: int, vocabulary: int | None = None
) -> tuple[Array, Array]:
    xp, logits = array_module(logits), logits[:, :vocabulary]
    counted = labels != ignore_index
    most = logits.max(axis=1)
    log_sum = xp.log(xp.exp(logits - most[:, None]).sum(axis=1)) + most
    at_label = logits[xp.arange(len(labels)), xp.where(counted, labels, 0)]
    return (log_sum - at_label) * counted, log_sum


def cross_entropy_gradient(
    gradient: Array,
    logits: Array,
    labels: Array,
    log_sum: Array,
    ignore_index: int,
    vocabulary: int | None = None,
) -> Array:
    xp = array_module(logits)
    counted = labels != ignore_index
    by_logits = xp.zeros_like(logits)
    own = by_logits[:, :vocabulary]
    own[...] = xp.exp(logits[:, :vocabulary] - log_sum[:, None])
    own[xp.arange(len(labels)), xp.where(counted, labels, 0)] -= 1
    own *= (gradient * counted)[:, None]
    return by_logits


def argmax(x: Array, vocabulary: int | None = None) -> Array:
    return x[..., :vocabulary].argmax(axis=-1)


def squared_sums(x: Array, bounds: Array) -> Array:
    sums = [(x[start:stop].astype(np.float64) ** 2).sum() for start, stop in pairwise(bounds.tolist())]
    return array_module(x).stack(sums)


def root_of_sum(sums: Array) -> Array:
    xp = array_module(sums)
    return xp.asarray(xp.sqrt(sums.sum()))


def round_to_bfloat16(x: Array, out: Array | None = None) -> Array:
    if out is None:
        return x.astype(ml_dtypes.bfloat16)
    out[...] = x
    return out


def update_factors(
    learning_rate: float | Array, gradient_scale: float | Array, updates: Array, betas: tuple[float, float] | None
) -> Array:
    first, second = 1.0, 1.0
    scale = float(gradient_scale)
    if math.isfinite(scale):
        updates += 1
        if betas is not None:
            first, second = (1 - beta ** int(updates[0]) for beta in betas)
    return array_module(updates).asarray([float(learning_rate), scale, 1 / first, 1 / math.sqrt(second)])


def _advance_moments(
    gradients: Array,
    first_moments: Array,
    second_moments: Array,
    betas: tuple[float, float],
    gradient_scale: float,
) -> None:
    """Fold the gradients into the moments in place."""
    scaled = gradients * gradient_scale
    first_moments *= betas[0]
    first_moments += (1 - betas[0]) * scaled
    second_moments *= betas[1]
    scaled *= scaled
    scaled *= 1 - betas[1]
    second_moments += scaled


def _direction(
    first_moments: Array, second_moments: Array, epsilon: float, first_factor: float, root_factor: float
) -> Array:
    """Return Adam's direction."""
    root = array_module(second_moments).sqrt(second_moments)
    root *= root_factor
    root += epsilon
    direction = first_moments / root
    direction *= first_factor
    return direction


def adamw(
    values: Array,
    gradients: Array,
    first_moments: Array,
    second_moments: Array,
    factors: Array,
    *,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
    bfloat16_copy: Array | None = None,
) -> None:
    learning_rate, gradient_scale, *corrections = factors.tolist()
    if not math.isfinite(gradient_scale):
        return
    for start in range(0, len(values), _BLOCK):
        block = slice(start, start + _BLOCK)
        moments = first_moments[block], second_moments[block]
        _advance_moments(gradients[block], *moments, betas, gradient_scale)
        values[block] *= 1 - learning_rate * weight_decay
        values[block] -= _direction(*moments, epsilon, *corrections) * learning_rate
    if bfloat16_copy is not None:
        bfloat16_copy[...] = values


def lamb_moments(
    values: Array,
    gradients: Array,
    first_moments: Array,
    second_moments: Array,
    bounds: Array,
    factors: Array,
    *,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
) -> Array:
    xp = array_module(values)
    _, gradient_scale, *corrections = factors.tolist()
    if not math.isfinite(gradient_scale):
        return xp.zeros((len(bounds) - 1, 2))
    _advance_moments(gradients, first_moments, second_moments, betas, gradient_scale)
    update = _direction(first_moments, second_moments, epsilon, *corrections) + weight_decay * values
    return xp.stack([squared_sums(values, bounds), squared_sums(update, bounds)], axis=1)


def lamb_rates(squares: Array, first_blocks: Array, adapting: int, factors: Array) -> Array:
    xp = array_module(squares)
    rates = xp.empty(len(squares))
    bounds = pairwise([*first_blocks.tolist(), len(squares)])
    for parameter, (start, stop) in enumerate(bounds):
        value_norm, update_norm = xp.sqrt(squares[start:stop].sum(axis=0))
        adapts = parameter < adapting and value_norm > 0 and update_norm > 0
        rates[start:stop] = factors[0] * (value_norm / update_norm if adapts else 1)
    return rates


def lamb_update(
    values: Array,
    first_moments: Array,
    second_moments: Array,
    bounds: Array,
    rates: Array,
    factors: Array,
    *,
    epsilon: float,
    weight_decay: float,
    bfloat16_copy: Array | None = None,
) -> None:
    _, gradient_scale, *corrections = factors.tolist()
    if not math.isfinite(gradient_scale):
        return
    update = _direction(first_moments, second_moments, epsilon, *corrections) + weight_decay * values
    for (start, stop), rate in zip(pairwise(bounds.tolist()), rates.tolist(), strict=True):
        values[start:stop] -= update[start:stop] * rate
    if bfloat16_copy is not None:
        bfloat16_copy[...] = values
