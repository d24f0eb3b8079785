"""Attention, a few heads at a time, so that their scores stay in the cache between the matrix products."""

import math
from dataclasses import dataclass

import numpy as np
from numba import types

from lucid.backend import Array
from lucid.kernels import threads
from lucid.kernels.cpu.arrays import plain
from lucid.kernels.cpu.compiling import kernel, part, read, write
from lucid.kernels.cpu.mathematics import LEAST, ONE, exp, number_at, order_of
from lucid.kernels.cpu.philox import DRAWS, draws, fill_factors, scratch
from lucid.kernels.cpu.sums import row_product, row_sum
from lucid.random import Coordinates

# The scores of as many heads as fit are made at once: half of a usual second-level cache.
_SCORES_AT_ONCE = 131_072


@dataclass(frozen=True)
class _Group:
    """Heads [start, stop) of one sample."""

    sample: int
    heads: slice

    @property
    def count(self) -> int:
        return int(self.heads.stop - self.heads.start)

    def of(self, x: Array) -> Array:
        """Return their part of x [B, T, H, D] as [heads, T, D]."""
        return x[self.sample].transpose(1, 0, 2)[self.heads]


def _groups(samples: int, heads: int, length: int) -> list[_Group]:
    at_once = max(1, _SCORES_AT_ONCE // length**2)
    starts = range(0, heads, at_once)
    return [_Group(row, slice(start, min(start + at_once, heads))) for row in range(samples) for start in starts]


@part
def _softmax(scores: Array, mask: Array, scale: np.float32, y: Array) -> None:
    """Write the softmax of one row of scores. Where the mask is 0, the score counts as the least number."""
    most = order_of(LEAST)
    for column in range(scores.shape[0]):
        score = scores[column] * scale if mask[column] else LEAST
        y[column] = score
        most = max(most, order_of(score))
    greatest = number_at(most)
    for column in range(scores.shape[0]):
        y[column] = exp(y[column] - greatest)
    reciprocal = ONE / row_sum(y)
    for column in range(scores.shape[0]):
        y[column] *= reciprocal


@kernel(read(3), read(1, types.boolean), types.float64, write(3), write(3), *DRAWS, types.int64, types.int64)
def _masked_softmax(
    scores: Array,
    mask: Array,
    scale: float,
    probabilities: Array,
    kept: Array,
    place: Array,
    samples: Array,
    keep_scale: float,
    first_row: int,
    rows: int,
) -> None:
    factors, words = scratch(scores.shape[2])
    for head in range(scores.shape[0]):
        for row in range(scores.shape[1]):
            source, target = probabilities[head, row], kept[head, row]
            _softmax(scores[head, row], mask, np.float32(scale), source)
            number = first_row + head * scores.shape[1] + row
            fill_factors(factors, words, place, samples, keep_scale, number, rows)
            for column in range(factors.shape[0]):
                target[column] = source[column] * factors[column]


@kernel(write(3), read(3), types.float64, write(3), *DRAWS, types.int64, types.int64)
def _masked_softmax_gradient(
    gradient: Array,
    probabilities: Array,
    scale: float,
    kept: Array,
    place: Array,
    samples: Array,
    keep_scale: float,
    first_row: int,
    rows: int,
) -> None:
    """Turn the gradient by the kept probabilities into that by the scores, in place; make them again as well."""
    factors, words = scratch(gradient.shape[2])
    for head in range(gradient.shape[0]):
        for row in range(gradient.shape[1]):
            source, target, made = probabilities[head, row], gradient[head, row], kept[head, row]
            number = first_row + head * gradient.shape[1] + row
            fill_factors(factors, words, place, samples, keep_scale, number, rows)
            for column in range(factors.shape[0]):
                made[column] = source[column] * factors[column]
            along = row_product(target, made)
            for column in range(factors.shape[0]):
                by_probability = target[column] * factors[column] - along
                target[column] = by_probability * source[column] * np.float32(scale)


def attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    heads: int,
    probability: float,
    stream: int,
    coordinates: Coordinates | None,
) -> tuple[Array, Array]:
    q, k, v = (_split_heads(x, heads) for x in (query, key, value))
    B, T, H, D = q.shape
    mask = np.ones((B, T), bool) if mask is None else plain(mask, bool)
    output, probabilities = np.empty_like(q), np.empty((B, H, T, T), np.float32)
    groups, drawn = _groups(B, H, T), draws(probability, stream, coordinates)

    def work(part: slice) -> None:
        scores_of_all, kept_of_all = _score_scratch(T, H), _score_scratch(T, H)
        for group in groups[part]:
            scores, kept = scores_of_all[: group.count], kept_of_all[: group.count]
            np.matmul(group.of(q), group.of(k).swapaxes(1, 2), out=scores)
            _masked_softmax(
                scores, mask[group.sample], 1 / math.sqrt(D), probabilities[group.sample, group.heads], kept,
                *drawn, (group.sample * H + group.heads.start) * T, H * T,
            )  # fmt: skip
            np.matmul(kept, group.of(v), out=group.of(output))

    threads.split_products(len(groups), probabilities.size, work)
    return output.reshape(query.shape), probabilities


def attention_gradient(
    gradient: Array,
    query: Array,
    key: Array,
    value: Array,
    probabilities: Array,
    heads: int,
    probability: float,
    stream: int,
    coordinates: Coordinates | None,
) -> tuple[Array, Array, Array]:
    g, q, k, v = (_split_heads(x, heads) for x in (gradient, query, key, value))
    B, T, H, D = q.shape
    by_query, by_key, by_value = np.empty_like(q), np.empty_like(q), np.empty_like(q)
    groups, drawn = _groups(B, H, T), draws(probability, stream, coordinates)

    def work(part: slice) -> None:
        scores_of_all, kept_of_all = _score_scratch(T, H), _score_scratch(T, H)
        for group in groups[part]:
            by_scores, kept = scores_of_all[: group.count], kept_of_all[: group.count]
            np.matmul(group.of(g), group.of(v).swapaxes(1, 2), out=by_scores)
            _masked_softmax_gradient(
                by_scores, probabilities[group.sample, group.heads], 1 / math.sqrt(D), kept,
                *drawn, (group.sample * H + group.heads.start) * T, H * T,
            )  # fmt: skip
            np.matmul(kept.swapaxes(1, 2), group.of(g), out=group.of(by_value))
            np.matmul(by_scores, group.of(k), out=group.of(by_query))
            np.matmul(by_scores.swapaxes(1, 2), group.of(q), out=group.of(by_key))

    threads.split_products(len(groups), probabilities.size, work)
    return by_query.reshape(query.shape), by_key.reshape(query.shape), by_value.reshape(query.shape)


def _split_heads(x: Array, heads: int) -> Array:
    B, T, C = x.shape
    return plain(x).reshape(B, T, heads, C // heads)


def _score_scratch(length: int, heads: int) -> Array:
    return np.empty((min(heads, max(1, _SCORES_AT_ONCE // length**2)), length, length), np.float32)
