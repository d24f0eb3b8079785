"""Philox4x32-10 inside kernels: the words of `lucid.random`, bit for bit, made where they are used.

Dropout multiplies by a factor, 0 or 1 / (1 - probability), rather than choosing: what is not a number stays so.
"""

from dataclasses import dataclass

import numpy as np
from numba import types

from lucid.backend import Array
from lucid.kernels.cpu.compiling import part, read
from lucid.kernels.cpu.mathematics import ONE, ZERO
from lucid.random import Coordinates, keep_threshold

# The parameters by which a kernel draws for rows: what `Draws.of` returns.
DRAWS = read(1, types.uint64), read(1, types.uint64), read(1, types.int64), types.float64

_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_FIRST_MULTIPLIER, _SECOND_MULTIPLIER = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_LOW_INCREMENT, _HIGH_INCREMENT = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@dataclass(frozen=True)
class Draws:
    """What kernels draw by: (stream, both halves of the seed, threshold), and the counters and place of each row.

    Where nothing is dropped, all are empty.
    """

    place: Array
    counters: Array
    positions: Array
    scale: float

    def of(self, rows: slice) -> tuple[Array, Array, Array, float]:
        """Return the arguments of a kernel that goes through these rows."""
        return self.place, self.counters[rows], self.positions[rows], self.scale


def draws(probability: float, stream: int, coordinates: Coordinates | None, parts: int = 1) -> Draws:
    """Return what kernels draw by for an array each of whose rows, by `coordinates`, is `parts` rows to them."""
    if coordinates is None:
        return Draws(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64), 1.0)
    seed, counters = coordinates.seed, np.asarray(coordinates.counters)
    words = [stream, seed, seed >> 32]
    place = np.array([word & 0xFFFFFFFF for word in words] + [keep_threshold(probability)], dtype=np.uint64)
    positions = np.zeros(len(counters), np.int64)
    if coordinates.positions is not None:
        positions = np.asarray(coordinates.positions, np.int64)
    of_parts = (positions[:, None] * parts + np.arange(parts)).reshape(-1)
    return Draws(place, np.repeat(counters.astype(np.uint64), parts), of_parts, 1 / (1 - probability))


@part
def scratch(width: int) -> tuple[Array, Array]:
    """Return an array for the factors of `width` elements, all 1, and one for the words they come from."""
    return np.full(width, ONE), np.empty((width + 7) // 4 * 4, np.uint32)


@part
def fill_factors(
    factors: Array, words: Array, place: Array, counters: Array, positions: Array, scale: float, row: int
) -> None:
    """Write the dropout factors of one row.

    Does nothing where nothing is dropped: the factors are 1 from the beginning.
    """
    if place.shape[0] > 0:
        fill_factors_from(factors, words, place, counters[row], positions[row] * factors.shape[0], scale)


@part
def fill_factors_from(factors: Array, words: Array, place: Array, counter: np.uint64, first: int, scale: float) -> None:
    """Write the dropout factors of the elements of the sample at `counter`, from the `first` on, if any is dropped."""
    if place.shape[0] == 0:
        return
    _fill_words(words, place, counter, first // 4)
    drawn = words[first % 4 :]
    threshold, kept = np.uint32(place[3]), np.float32(scale)
    for column in range(factors.shape[0]):
        factors[column] = kept if drawn[column] >= threshold else ZERO


@part
def _fill_words(words: Array, place: Array, counter: np.uint64, first_block: int) -> None:
    """Write the words from `first_block` on. They are 32 bits wide in 64, so that a product has both its halves."""
    for block in range(words.shape[0] // 4):
        first, second, third, fourth = (
            place[0],
            counter >> _HALF,
            counter & _WORD,
            np.uint64(first_block + block) & _WORD,
        )
        low_key, high_key = place[1], place[2]
        for _ in range(10):
            one, other = first * _FIRST_MULTIPLIER, third * _SECOND_MULTIPLIER
            first, second = second ^ (other >> _HALF) ^ low_key, other & _WORD
            third, fourth = fourth ^ (one >> _HALF) ^ high_key, one & _WORD
            low_key, high_key = (low_key + _LOW_INCREMENT) & _WORD, (high_key + _HIGH_INCREMENT) & _WORD
        words[4 * block] = first
        words[4 * block + 1] = second
        words[4 * block + 2] = third
        words[4 * block + 3] = fourth
