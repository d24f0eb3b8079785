"""Attention, a few heads of a sequence at a time, so that scores stay in the cache between the matrix products."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numba import types

from lucid.backend import Array
from lucid.kernels import onednn, products, threads
from lucid.kernels.arguments import Dropout
from lucid.kernels.cpu.arrays import plain
from lucid.kernels.cpu.compiling import kernel, part, read, write
from lucid.kernels.cpu.gemm import multiply_here
from lucid.kernels.cpu.mathematics import LEAST, ONE, bfloat16_of, exp, number_at, order_of
from lucid.kernels.cpu.philox import DropoutArguments, dropout_arguments, fill_factors_from, scratch
from lucid.kernels.cpu.sums import row_product, row_sum
from lucid.kernels.sequences import Sequences

# Heads are grouped up to this many scores: half of a typical second-level cache.
_SCORES_AT_ONCE = 131_072

# The types of `_Group.dropout_arguments`: the last parameters of a kernel for the heads of one sequence.
_DROPOUT_TYPES = read(1, types.uint64), types.uint64, types.float64, types.int64, types.int64, types.int64


@dataclass(frozen=True)
class _Group:
    """Some heads of one sequence, which occupies `rows`."""

    rows: slice
    heads: slice
    # The slice of all the sequence's heads in a flat array of [L, L] squares of all sequences.
    squares: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape [heads, L, L] of the group's scores."""
        length = self.rows.stop - self.rows.start
        return self.heads.stop - self.heads.start, length, length

    def of(self, x: Array) -> Array:
        """Return the group's part of x [N, H, D] as [heads, L, D]."""
        return x[self.rows].transpose(1, 0, 2)[self.heads]

    def squares_of(self, x: Array) -> Array:
        """Return the group's part of the flat array x as [heads, L, L]."""
        _, length, _ = self.shape
        return x[self.squares].reshape(-1, length, length)[self.heads]

    def dropout_arguments(
        self, of_rows: DropoutArguments, length: int
    ) -> tuple[Array, np.uint64, float, int, int, int]:
        """Return the arguments for these heads and rows of the sample's [H, T, T] elements, where T is `length`."""
        if not len(of_rows.key):
            return of_rows.key, np.uint64(0), 1.0, 0, 0, length
        first = self.rows.start
        return of_rows.key, of_rows.counters[first], of_rows.scale, self.heads.start, of_rows.positions[first], length


def _groups(sequences: Sequences, heads: int) -> list[_Group]:
    """Return the groups of all sequences, of equal size within a sequence if possible, so that few products differ."""
    groups = []
    for rows, area in zip(sequences.rows, sequences.areas, strict=True):
        if area.start == area.stop:
            continue
        parts = -(-heads // max(1, _SCORES_AT_ONCE // (area.stop - area.start)))
        at_once = -(-heads // parts)
        for start in range(0, heads, at_once):
            part = slice(start, min(start + at_once, heads))
            groups.append(_Group(rows, part, slice(heads * area.start, heads * area.stop)))
    return groups


@dataclass(frozen=True)
class _Room:
    """Memory for the scores of a group while it is worked on: [heads, L, L] each.

    Products take `kept` and `factor`, which are bfloat16 if they round. Otherwise they are float32, and `factor` is
    `scores`.
    """

    scores: Array
    kept: Array
    factor: Array

    @property
    def results(self) -> tuple[Array, Array, Array]:
        """Where the backward kernel writes: `kept` in float32, and the bits of `kept` and `factor` in bfloat16."""
        return _numbers_of(self.kept), _bits_of(self.kept), _bits_of(self.factor)


def _divide(groups: list[_Group], work: Callable[[Iterator[tuple[_Group, _Room]]], None]) -> None:
    """Divide the groups among the threads, and call `work` on each with room for its scores."""
    starts = list(accumulate((math.prod(group.shape) for group in groups), initial=0))

    def work_on(elements: slice) -> None:
        mine = groups[bisect_left(starts, elements.start) : bisect_left(starts, elements.stop)]
        scores, other = np.empty((2, max((math.prod(group.shape) for group in mine), default=0)), np.float32)
        work((group, _room(group.shape, scores, other)) for group in mine)

    split = threads.split if onednn.is_installed() else threads.split_products
    split(starts[-1], starts[-1], work_on)


def _room(shape: tuple[int, int, int], scores: Array, other: Array) -> _Room:
    size = math.prod(shape)
    scores = scores[:size].reshape(shape)
    if not products.rounds():
        return _Room(scores, other[:size].reshape(shape), scores)
    kept, factor = other[:size].view(onednn.BFLOAT16).reshape(2, *shape)
    return _Room(scores, kept, factor)


def _numbers_of(factor: Array) -> Array:
    """Return a float32 array as it is, or an empty array in place of one of bfloat16."""
    return factor if factor.dtype == np.float32 else np.empty((0, 0, 0), np.float32)


def _bits_of(factor: Array) -> Array:
    """Return the bits of a bfloat16 array, or an empty array in place of one of float32."""
    return factor.view(np.uint16) if factor.dtype == onednn.BFLOAT16 else np.empty((0, 0, 0), np.uint16)


@part
def _softmax(scores: Array, mask: Array, scale: np.float32, y: Array) -> None:
    """Write the softmax of one row of scores. A score with mask 0 is replaced by the least number."""
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


@kernel(write(3), read(1, types.boolean), types.float64, write(3), write(3, types.uint16), *_DROPOUT_TYPES)
def _masked_softmax(
    scores: Array,
    mask: Array,
    scale: float,
    probabilities: Array,
    rounded: Array,
    key: Array,
    counter: np.uint64,
    keep_scale: float,
    first_head: int,
    position: int,
    length: int,
) -> None:
    """Write the probabilities; after dropout write them to `rounded`, or over the scores if it is empty."""
    factors, words = scratch(scores.shape[2])
    rounds = rounded.shape[0] > 0
    for head in range(scores.shape[0]):
        for row in range(scores.shape[1]):
            source, target = probabilities[head, row], scores[head, row]
            _softmax(target, mask, np.float32(scale), source)
            first = ((first_head + head) * length + position + row) * length + position
            fill_factors_from(factors, words, key, counter, first, keep_scale)
            if rounds:
                bits = rounded[head, row]
                for column in range(factors.shape[0]):
                    bits[column] = bfloat16_of(source[column] * factors[column])
            else:
                for column in range(factors.shape[0]):
                    target[column] = source[column] * factors[column]


@kernel(
    write(3), read(3), types.float64, write(3), write(3, types.uint16), write(3, types.uint16), *_DROPOUT_TYPES
)  # fmt: skip
def _masked_softmax_gradient(
    gradient: Array,
    probabilities: Array,
    scale: float,
    kept: Array,
    rounded_kept: Array,
    rounded: Array,
    key: Array,
    counter: np.uint64,
    keep_scale: float,
    first_head: int,
    position: int,
    length: int,
) -> None:
    """Write the probabilities after dropout, and replace the gradient by these by the gradient by the scores.

    If `rounded_kept` and `rounded` are not empty, both results go there.
    """
    factors, words = scratch(gradient.shape[2])
    room, rounds = np.empty(gradient.shape[2], np.float32), rounded.shape[0] > 0
    for head in range(gradient.shape[0]):
        for row in range(gradient.shape[1]):
            source, target = probabilities[head, row], gradient[head, row]
            made = room if rounds else kept[head, row]
            first = ((first_head + head) * length + position + row) * length + position
            fill_factors_from(factors, words, key, counter, first, keep_scale)
            for column in range(factors.shape[0]):
                made[column] = source[column] * factors[column]
            along = row_product(target, made)
            for column in range(factors.shape[0]):
                by_probability = target[column] * factors[column] - along
                target[column] = by_probability * source[column] * np.float32(scale)
            if rounds:
                _round_row(made, rounded_kept[head, row])
                _round_row(target, rounded[head, row])


@part
def _round_row(row: Array, bits: Array) -> None:
    for column in range(row.shape[0]):
        bits[column] = bfloat16_of(row[column])


def attention(joined: Array, sequences: Sequences, heads: int, dropout: Dropout) -> tuple[Array, Array]:
    q, k, v = _split_heads(joined, 3, heads)
    N, H, D = q.shape
    mask = np.ones(N, bool) if sequences.mask is None else plain(sequences.mask, bool)
    output = np.empty((N, H, D), joined.dtype)
    probabilities = np.empty(H * sequences.areas[-1].stop, np.float32)
    arguments, scale = dropout_arguments(dropout), 1 / math.sqrt(D)

    def work(groups: Iterator[tuple[_Group, _Room]]) -> None:
        for group, room in groups:
            multiply_here(group.of(q), group.of(k).swapaxes(1, 2), room.scores)
            bits, of_dropout = _bits_of(room.factor), group.dropout_arguments(arguments, sequences.length)
            of_group = mask[group.rows], scale, group.squares_of(probabilities), bits, *of_dropout
            _masked_softmax(room.scores, *of_group)
            multiply_here(room.factor, group.of(v), group.of(output))

    _divide(_groups(sequences, heads), work)
    return output.reshape(N, H * D), probabilities


def attention_gradient(
    gradient: Array, joined: Array, saved: Array, sequences: Sequences, heads: int, dropout: Dropout
) -> Array:
    (g,), (q, k, v) = _split_heads(gradient, 1, heads), _split_heads(joined, 3, heads)
    N, H, D = q.shape
    by_joined = np.empty((N, 3, H, D), joined.dtype)
    by_query, by_key, by_value = by_joined.swapaxes(0, 1)
    arguments, scale = dropout_arguments(dropout), 1 / math.sqrt(D)

    def work(groups: Iterator[tuple[_Group, _Room]]) -> None:
        for group, room in groups:
            multiply_here(group.of(g), group.of(v).swapaxes(1, 2), room.scores)
            of_dropout = group.dropout_arguments(arguments, sequences.length)
            of_group = group.squares_of(saved), scale, *room.results, *of_dropout
            _masked_softmax_gradient(room.scores, *of_group)
            multiply_here(room.kept.swapaxes(1, 2), group.of(g), group.of(by_value))
            multiply_here(room.factor, group.of(k), group.of(by_query))
            multiply_here(room.factor.swapaxes(1, 2), group.of(q), group.of(by_key))

    _divide(_groups(sequences, heads), work)
    return by_joined.reshape(N, 3 * H * D)


def _split_heads(x: Array, parts: int, heads: int) -> Array:
    """Return x [N, parts x C] as [parts, N, H, C / H]."""
    return np.ascontiguousarray(x).reshape(len(x), parts, heads, -1).swapaxes(0, 1)
