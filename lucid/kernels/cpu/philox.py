"""Philox4x32-10 inside kernels: the words of `lucid.random`, bit for bit, made where they are used.

Dropout multiplies by a factor, 0 or 1 / (1 - probability), rather than choosing: what is not a number stays so.
"""

import numpy as np
from numba import types

from lucid.backend import Array
from lucid.kernels.cpu.compiling import part, read
from lucid.kernels.cpu.mathematics import ONE, ZERO
from lucid.random import Coordinates, keep_threshold

# The parameters by which a kernel draws: what `draws` returns.
DRAWS = read(1, types.uint64), read(1, types.uint64), types.float64

_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_FIRST_MULTIPLIER, _SECOND_MULTIPLIER = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_LOW_INCREMENT, _HIGH_INCREMENT = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


def draws(probability: float, stream: int, coordinates: Coordinates | None) -> tuple[Array, Array, float]:
    """Return what kernels draw by: (stream, step, both halves of the seed, threshold), samples [B], and the scale.

    Without coordinates nothing is dropped: the first is empty.
    """
    if coordinates is None:
        return np.empty(0, np.uint64), np.empty(0, np.uint64), 1.0
    seed, step = coordinates.seed, coordinates.step
    words = [stream, step, seed, seed >> 32]
    place = np.array([word & 0xFFFFFFFF for word in words] + [keep_threshold(probability)], dtype=np.uint64)
    return place, np.asarray(coordinates.samples).astype(np.uint64), 1 / (1 - probability)


@part
def scratch(width: int) -> tuple[Array, Array]:
    """Return an array for the factors of `width` elements, all 1, and one for the words they come from."""
    return np.full(width, ONE), np.empty((width + 7) // 4 * 4, np.uint32)


@part
def fill_factors(factors: Array, words: Array, place: Array, samples: Array, scale: float, row: int, rows: int) -> None:
    """Write the dropout factors of one row of an array [B x rows, width]: each sample has `rows` of them.

    Does nothing where nothing is dropped: the factors are 1 from the beginning.
    """
    if place.shape[0] == 0:
        return
    first = row % rows * factors.shape[0]
    _fill_words(words, place, samples[row // rows] & _WORD, first // 4)
    drawn = words[first % 4 :]
    threshold, kept = np.uint32(place[4]), np.float32(scale)
    for column in range(factors.shape[0]):
        factors[column] = kept if drawn[column] >= threshold else ZERO


@part
def _fill_words(words: Array, place: Array, sample: np.uint64, first_block: int) -> None:
    """Write the words from `first_block` on. They are 32 bits wide in 64, so that a product has both its halves."""
    for block in range(words.shape[0] // 4):
        first, second, third, fourth = place[0], place[1], sample, np.uint64(first_block + block) & _WORD
        low_key, high_key = place[2], place[3]
        for _ in range(10):
            one, other = first * _FIRST_MULTIPLIER, third * _SECOND_MULTIPLIER
            first, second = second ^ (other >> _HALF) ^ low_key, other & _WORD
            third, fourth = fourth ^ (one >> _HALF) ^ high_key, one & _WORD
            low_key, high_key = (low_key + _LOW_INCREMENT) & _WORD, (high_key + _HIGH_INCREMENT) & _WORD
        words[4 * block] = first
        words[4 * block + 1] = second
        words[4 * block + 2] = third
        words[4 * block + 3] = fourth
