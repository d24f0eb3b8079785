"""Philox4x32-10 inside kernels: the words of `lucid.random`, bit for bit, computed where they are used.

Dropout multiplies by a factor, 0 or 1 / (1 - probability), instead of selecting, so that NaN stays NaN.
"""

from dataclasses import dataclass

import numpy as np
from numba import types

from lucid.backend import Array
from lucid.kernels.arguments import Dropout
from lucid.kernels.cpu.compiling import part, read
from lucid.kernels.cpu.mathematics import ONE, ZERO
from lucid.random import keep_threshold

# The types of `DropoutArguments.of_rows`: the last parameters of a kernel with dropout.
DROPOUT_TYPES = read(1, types.uint64), read(1, types.uint64), read(1, types.int64), types.float64

_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_FIRST_MULTIPLIER, _SECOND_MULTIPLIER = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_LOW_INCREMENT, _HIGH_INCREMENT = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@dataclass(frozen=True)
class DropoutArguments:
    """The arguments by which kernels draw dropout: (purpose, both halves of the seed, threshold), and where rows draw.

    If nothing is dropped, all arrays are empty.
    """

    key: Array
    counters: Array
    positions: Array
    scale: float

    def of_rows(self, rows: slice) -> tuple[Array, Array, Array, float]:
        """Return the arguments of a kernel that works on these rows."""
        return self.key, self.counters[rows], self.positions[rows], self.scale


def dropout_arguments(dropout: Dropout, parts: int = 1) -> DropoutArguments:
    """Return the arguments for an array each of whose rows, by the coordinates, is `parts` rows to the kernel."""
    coordinates = dropout.coordinates
    if coordinates is None:
        return DropoutArguments(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64), 1.0)
    seed, counters = coordinates.seed, np.asarray(coordinates.counters)
    words = [word & 0xFFFFFFFF for word in (dropout.purpose, seed, seed >> 32)]
    key = np.array([*words, keep_threshold(dropout.probability)], dtype=np.uint64)
    positions = np.zeros(len(counters), np.int64)
    if coordinates.positions is not None:
        positions = np.asarray(coordinates.positions, np.int64)
    of_parts = (positions[:, None] * parts + np.arange(parts)).reshape(-1)
    scale = 1 / (1 - dropout.probability)
    return DropoutArguments(key, np.repeat(counters.astype(np.uint64), parts), of_parts, scale)


@part
def scratch(width: int) -> tuple[Array, Array]:
    """Return arrays for the factors of `width` elements, all 1, and for the words that determine them."""
    return np.full(width, ONE), np.empty((width + 7) // 4 * 4, np.uint32)


@part
def fill_factors(
    factors: Array, words: Array, key: Array, counters: Array, positions: Array, scale: float, row: int
) -> None:
    """Write the dropout factors of one row. If nothing is dropped, leave the factors as they are, all 1."""
    if key.shape[0] > 0:
        fill_factors_from(factors, words, key, counters[row], positions[row] * factors.shape[0], scale)


@part
def fill_factors_from(factors: Array, words: Array, key: Array, counter: np.uint64, first: int, scale: float) -> None:
    """Write the dropout factors of the sample at `counter` from element `first` on, unless nothing is dropped."""
    if key.shape[0] == 0:
        return
    _fill_words(words, key, counter, first // 4)
    drawn = words[first % 4 :]
    threshold, kept = np.uint32(key[3]), np.float32(scale)
    for column in range(factors.shape[0]):
        factors[column] = kept if drawn[column] >= threshold else ZERO


@part
def _fill_words(words: Array, key: Array, counter: np.uint64, first_block: int) -> None:
    """Write the words from `first_block` on. 64-bit variables hold the 32-bit words, so that products fit."""
    for block in range(words.shape[0] // 4):
        first, second = key[0], counter >> _HALF
        third, fourth = counter & _WORD, np.uint64(first_block + block) & _WORD
        low_key, high_key = key[1], key[2]
        for _ in range(10):
            one, other = first * _FIRST_MULTIPLIER, third * _SECOND_MULTIPLIER
            first, second = second ^ (other >> _HALF) ^ low_key, other & _WORD
            third, fourth = fourth ^ (one >> _HALF) ^ high_key, one & _WORD
            low_key, high_key = (low_key + _LOW_INCREMENT) & _WORD, (high_key + _HIGH_INCREMENT) & _WORD
        words[4 * block] = first
        words[4 * block + 1] = second
        words[4 * block + 2] = third
        words[4 * block + 3] = fourth
