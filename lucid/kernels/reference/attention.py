"""Attention, one sequence at a time."""

import math
from collections.abc import Iterator

from lucid.backend import Array, array_module
from lucid.kernels.arguments import Dropout
from lucid.kernels.reference.elementwise import keep_factors
from lucid.kernels.sequences import Sequences
from lucid.random import Coordinates, random_words


def attention(joined: Array, sequences: Sequences, heads: int, dropout: Dropout) -> tuple[Array, Array]:
    xp = array_module(joined)
    output = xp.empty((len(joined), joined.shape[1] // 3), joined.dtype)
    all_probabilities = xp.empty(heads * sequences.areas[-1].stop, joined.dtype)
    for rows, area in _sequences_with_rows(sequences):
        q, k, v = _split_heads(joined[rows], 3, heads)
        scores = xp.matmul(q, k.swapaxes(-1, -2))
        scores *= 1 / math.sqrt(q.shape[-1])
        if sequences.mask is not None:
            # The least finite number, not minus infinity: a row without any key is then uniform, not NaN.
            scores[...] = xp.where(sequences.mask[rows], scores, xp.finfo(scores.dtype).min)
        scores -= scores.max(axis=-1, keepdims=True)
        probabilities = xp.exp(scores, out=scores)
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
        all_probabilities[heads * area.start : heads * area.stop] = probabilities.reshape(-1)
        factors = _keep_factors(probabilities, rows.start, sequences.length, dropout)
        if factors is not None:
            probabilities *= factors
        output[rows] = _join_heads(xp.matmul(probabilities, v))
    return output, all_probabilities


def attention_gradient(
    gradient: Array, joined: Array, saved: Array, sequences: Sequences, heads: int, dropout: Dropout
) -> Array:
    xp = array_module(gradient)
    by_joined = xp.empty_like(joined)
    for rows, area in _sequences_with_rows(sequences):
        (g,), (q, k, v) = _split_heads(gradient[rows], 1, heads), _split_heads(joined[rows], 3, heads)
        length = rows.stop - rows.start
        p = saved[heads * area.start : heads * area.stop].reshape(heads, length, length)
        kept, by_probability = p, xp.matmul(g, v.swapaxes(-1, -2))
        factors = _keep_factors(p, rows.start, sequences.length, dropout)
        if factors is not None:
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


def _sequences_with_rows(sequences: Sequences) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and the area of each sequence that is not empty."""
    pairs = zip(sequences.rows, sequences.areas, strict=True)
    return ((rows, area) for rows, area in pairs if rows.start < rows.stop)


def _split_heads(x: Array, parts: int, heads: int) -> Array:
    """Return x [L, parts x C] as [parts, H, L, C / H]."""
    return x.reshape(len(x), parts, heads, -1).transpose(1, 2, 0, 3)


def _join_heads(*parts: Array) -> Array:
    """Return arrays [H, L, C / H] as one [L, parts x C]."""
    return array_module(parts[0]).stack(parts).transpose(2, 0, 1, 3).reshape(parts[0].shape[1], -1)


def _keep_factors(like: Array, first: int, length: int, dropout: Dropout) -> Array | None:
    """Return the dropout factors of like [H, L, L], a part of the sample's [H, T, T], where T is `length`.

    The sequence begins at row `first` of the coordinates. Return None if nothing is dropped.
    """
    coordinates = dropout.coordinates
    if coordinates is None:
        return None
    xp, (H, L, _) = array_module(like), like.shape
    position = 0 if coordinates.positions is None else int(coordinates.positions[first])
    lines = (xp.arange(H)[:, None] * length + position + xp.arange(L)).reshape(-1)
    counters = xp.full(H * L, int(coordinates.counters[first]))
    words = random_words(dropout.purpose, Coordinates(coordinates.seed, counters, lines), length)
    return keep_factors(words[:, position : position + L].reshape(like.shape), like.dtype, dropout.probability)
