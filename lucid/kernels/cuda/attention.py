"""Attention by products of each sequence, and one softmax for all of them, with the mask before and dropout behind."""

import math
from collections.abc import Iterator

import numpy as np

from lucid.backend import Array, array_module
from lucid.kernels.cuda import launching
from lucid.kernels.cuda.arrays import empty, plain
from lucid.kernels.cuda.compiling import Variant, variant
from lucid.kernels.cuda.draws import draws
from lucid.kernels.cuda.launching import blocks_of, is_aligned, threads_of_row
from lucid.kernels.sequences import Sequences
from lucid.random import Coordinates

_MOST_THREADS = 512
# About how many threads a block has.
_TOGETHER = 128
# What a thread holds of a row of scores.
_HELD = 8


def form(element: str, vector: int) -> Variant:
    """Return the program of the softmax: columns come by four at least, read one by one where `vector` is 1."""
    return variant("attention", element, vector, SLOTS=_HELD // max(4, vector), MOST_THREADS=_MOST_THREADS)


def masked_softmax(
    scores: Array,
    sequences: Sequences,
    heads: int,
    scale: float,
    probability: float,
    stream: int,
    coordinates: Coordinates | None,
) -> tuple[Array, Array]:
    """Return (probabilities, what dropout keeps of them) for `scores` [P] times `scale`, laid out as `attention` says.

    Scores are of rows that follow one another, [H, L, L] of each sequence. What is kept takes the place of the scores;
    where nothing is dropped it is the probabilities themselves.
    """
    probabilities = array_module(scores).empty_like(scores)
    mask = None if sequences.mask is None else plain(sequences.mask, np.bool_)
    _launch(
        "masked_softmax", scores, probabilities, sequences, heads, (mask, np.float32(scale), probabilities),
        (probability, stream, coordinates),
    )  # fmt: skip
    return probabilities, probabilities if coordinates is None else scores


def masked_softmax_gradient(
    gradient: Array,
    probabilities: Array,
    sequences: Sequences,
    heads: int,
    scale: float,
    probability: float,
    stream: int,
    coordinates: Coordinates | None,
) -> Array:
    """Turn the gradient [P] by what was kept into that by the scores, in place. Return what was kept."""
    kept = probabilities if coordinates is None else array_module(gradient).empty_like(gradient)
    made = None if coordinates is None else kept
    _launch(
        "masked_softmax_gradient", gradient, probabilities, sequences, heads, (probabilities, np.float32(scale), made),
        (probability, stream, coordinates),
    )  # fmt: skip
    return kept


def _launch(
    kernel: str,
    scores: Array,
    other: Array,
    sequences: Sequences,
    heads: int,
    arguments: tuple[Array | np.float32 | None, ...],
    drawn: tuple[float, int, Coordinates | None],
) -> None:
    lengths = [rows.stop - rows.start for rows in sequences.rows]
    widest = 16 // scores.itemsize
    whole = is_aligned(scores) and is_aligned(other) and all(length % widest == 0 for length in lengths)
    block = threads_of_row(max(lengths), _HELD, _MOST_THREADS, _TOGETHER)
    rows = sequences.bounds[-1]
    launching.launch(
        form(scores.dtype.name, widest if whole else 1), kernel, (blocks_of(rows, block[1]), heads), block,
        scores, *arguments, plain(sequences.places, np.int64), np.int64(rows), np.int32(heads),
        np.int32(sequences.length), *draws(scores, *drawn),
    )  # fmt: skip


def attention(
    joined: Array,
    sequences: Sequences,
    heads: int,
    probability: float,
    stream: int,
    coordinates: Coordinates | None,
) -> tuple[Array, Array]:
    xp, C = array_module(joined), joined.shape[1] // 3
    output = empty(joined, len(joined), C, dtype=joined.dtype)
    scores = empty(joined, heads * sequences.areas[-1].stop, dtype=joined.dtype)
    for rows, square in _squares(scores, sequences, heads):
        q, k, _ = _split_heads(joined[rows], 3, heads)
        square[...] = xp.matmul(q, k.swapaxes(1, 2))
    drawn = probability, stream, coordinates
    probabilities, kept = masked_softmax(scores, sequences, heads, _scale(C, heads), *drawn)
    for rows, square in _squares(kept, sequences, heads):
        _, _, v = _split_heads(joined[rows], 3, heads)
        _split_heads(output[rows], 1, heads)[0] = xp.matmul(square, v)
    return output, probabilities


def attention_gradient(
    gradient: Array,
    joined: Array,
    probabilities: Array,
    sequences: Sequences,
    heads: int,
    probability: float,
    stream: int,
    coordinates: Coordinates | None,
) -> Array:
    xp, C = array_module(joined), joined.shape[1] // 3
    by_joined, by_scores = xp.empty_like(joined), xp.empty_like(probabilities)
    for rows, square in _squares(by_scores, sequences, heads):
        _, _, v = _split_heads(joined[rows], 3, heads)
        [g] = _split_heads(gradient[rows], 1, heads)
        square[...] = xp.matmul(g, v.swapaxes(1, 2))
    drawn = probability, stream, coordinates
    kept = masked_softmax_gradient(by_scores, probabilities, sequences, heads, _scale(C, heads), *drawn)
    squares = zip(_squares(by_scores, sequences, heads), _squares(kept, sequences, heads), strict=True)
    for (rows, square), (_, kept_square) in squares:
        q, k, _ = _split_heads(joined[rows], 3, heads)
        [g] = _split_heads(gradient[rows], 1, heads)
        by_query, by_key, by_value = _split_heads(by_joined[rows], 3, heads)
        by_query[...] = xp.matmul(square, k)
        by_key[...] = xp.matmul(square.swapaxes(1, 2), q)
        by_value[...] = xp.matmul(kept_square.swapaxes(1, 2), g)
    return by_joined


def _scale(width: int, heads: int) -> float:
    return 1 / math.sqrt(width // heads)


def _squares(x: Array, sequences: Sequences, heads: int) -> Iterator[tuple[slice, Array]]:
    """Yield the rows of each sequence, and its part of x [P] as [H, L, L]."""
    for rows, area in zip(sequences.rows, sequences.areas, strict=True):
        length = rows.stop - rows.start
        yield rows, x[heads * area.start : heads * area.stop].reshape(heads, length, length)


def _split_heads(x: Array, parts: int, heads: int) -> Array:
    """Return x [L, parts x C] as [parts, H, L, C / H], in the same memory if x is in C order."""
    return x.reshape(len(x), parts, heads, -1).transpose(1, 2, 0, 3)
