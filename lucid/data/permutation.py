"""The order of an epoch: a keyed permutation whose elements are computed one by one, in any order.

A sampler therefore continues at any step in O(1) and stores no list of the epoch. The permutation is a Feistel network
over pairs of digits (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002): it splits a number below
`size` into two digits, and each round adds a keyed hash of one digit to the other. A result of `size` or more goes
through the network again.
"""

import math

import numpy as np

from lucid.backend import Array
from lucid.random import Coordinates, Purpose, random_words

_ROUNDS = 8
_MIX = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Permutation:
    """The order in which epoch `epoch` of a run with `seed` visits `size` items."""

    def __init__(self, size: int, seed: int, epoch: int) -> None:
        self._size = size
        # The digits span little more than `size`, so that few numbers go through twice.
        self._high = math.isqrt(size - 1) + 1
        self._low = -(-size // self._high)
        words = random_words(Purpose.SHUFFLE, Coordinates.of(seed, epoch, np.zeros(1, dtype=np.int64)), 2 * _ROUNDS)[0]
        self._keys = words[::2].astype(np.uint64) << np.uint64(32) | words[1::2].astype(np.uint64)

    def at(self, positions: Array) -> Array:
        """Return the items (int64) at `positions` of the order; both are from 0 to `size - 1`."""
        found = self._network(positions.astype(np.uint64))
        while (outside := found >= self._size).any():
            found[outside] = self._network(found[outside])
        return found.astype(np.int64)

    def places(self, items: Array) -> Array:
        """Return the positions (int64) of `items` in the order: the inverse of `at`."""
        found = self._network_back(items.astype(np.uint64))
        while (outside := found >= self._size).any():
            found[outside] = self._network_back(found[outside])
        return found.astype(np.int64)

    def _network(self, numbers: Array) -> Array:
        low_base, high_base = np.uint64(self._low), np.uint64(self._high)
        high, low = np.divmod(numbers, low_base)
        for key_of_low, key_of_high in zip(self._keys[::2], self._keys[1::2], strict=True):
            high = (high + _hash(low, key_of_low)) % high_base
            low = (low + _hash(high, key_of_high)) % low_base
        return high * low_base + low

    def _network_back(self, numbers: Array) -> Array:
        low_base, high_base = np.uint64(self._low), np.uint64(self._high)
        high, low = np.divmod(numbers, low_base)
        for key_of_low, key_of_high in zip(self._keys[-2::-2], self._keys[::-2], strict=True):
            low = (low + low_base - _hash(high, key_of_high) % low_base) % low_base
            high = (high + high_base - _hash(low, key_of_low) % high_base) % high_base
        return high * low_base + low


def _hash(digits: Array, key: np.uint64) -> Array:
    """Mix 64 bits so that each depends on all of them, and return the upper half."""
    mixed = digits ^ key
    for multiplier in _MIX:
        mixed = (mixed ^ mixed >> np.uint64(30)) * multiplier
    return mixed >> np.uint64(32)
