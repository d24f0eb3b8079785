"""Random numbers as a pure function of where they are used: Philox4x32-10, keyed by coordinates.

The key is the run's seed; the four 32-bit counter words are (purpose, step, sample, block), and element `e` of a
sample is word `e % 4` of block `e // 4`. A number therefore depends on its purpose and its *global* position, never on
the rank, the number of ranks, the micro-batch or the order of calls. Backward draws again the numbers of forward.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from lucid.backend import Array, array_module

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_INCREMENTS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_WORD = 0xFFFFFFFF
# Blocks computed at once: their scratch arrays stay in a core's cache.
_CHUNK = 8192


class Purpose(IntEnum):
    """The first counter word: what the numbers are used for. Dropout adds the number of its site in the model."""

    BY_HAND = 0
    SHUFFLE = 1
    PAIR = 2
    MASK = 3
    MIXTURE = 4
    DROPOUT = 1 << 16


@dataclass(frozen=True)
class Coordinates:
    """Where in a run numbers are drawn.

    `counters` (int64 [B]) packs the second and third counter word of each row: the step in the high half, the sample in
    the low half. With `positions` (integers [B]) each row is one part of its sample: the parts have the length of the
    row and are numbered from 0. Both arrays may be in a GPU's memory. Nothing derived from them is cached, because each
    step may write new values into them.
    """

    seed: int
    counters: Array
    positions: Array | None = None

    @classmethod
    def of(cls, seed: int, step: int, samples: Array) -> "Coordinates":
        """Return the coordinates of a batch whose row `i` is sample `samples[i]` of step `step`.

        `samples` is an integer array [B]: each row's index in the *global* batch of the step.
        """
        above = np.uint64((int(step) & _WORD) << 32)
        return cls(seed, (samples.astype(np.uint64) & np.uint64(_WORD) | above).astype(np.int64))


def random_words(purpose: int, coordinates: Coordinates, count: int) -> Array:
    """Return uint32 [B, count]: `count` words for each of the B rows of `coordinates`.

    The array is on the device of `coordinates.counters`.
    """
    counters, positions = coordinates.counters, coordinates.positions
    xp = array_module(counters)
    first = xp.zeros(len(counters), np.int64) if positions is None else xp.asarray(positions, np.int64) * count
    # A row's words may begin within a block.
    blocks = -(-(count + (0 if positions is None else 3)) // 4)
    words = xp.empty((len(counters), blocks, 4), dtype=np.uint32)
    rows_at_once = max(1, _CHUNK // max(blocks, 1))
    for row in range(0, len(counters), rows_at_once):
        for start in range(0, blocks, _CHUNK):
            rows = slice(row, row + rows_at_once)
            numbers = first[rows, None] // 4 + xp.arange(start, min(start + _CHUNK, blocks))
            words[rows, start : start + _CHUNK] = _philox(purpose, coordinates.seed, counters[rows], numbers)
    words = words.reshape(len(counters), -1)
    return (
        words[:, :count] if positions is None else xp.take_along_axis(words, first[:, None] % 4 + xp.arange(count), 1)
    )


def _philox(purpose: int, seed: int, counters: Array, blocks: Array) -> Array:
    """Return uint32 [B, N, 4]: the words of blocks number `blocks` [B, N] at `Coordinates.counters` [B]."""
    xp, shape = array_module(counters), blocks.shape
    counters = xp.broadcast_to(counters.astype(np.uint64)[:, None], shape)
    # 32-bit words in 64-bit arrays: one element then holds both halves of a product.
    first = xp.full(shape, purpose & _WORD, dtype=np.uint64)
    word, half = np.uint64(_WORD), np.uint64(32)
    second, third = counters >> half, counters & word
    fourth = blocks.astype(np.uint64)
    low_key, high_key = seed & _WORD, seed >> 32 & _WORD
    for _ in range(_ROUNDS):
        first *= _MULTIPLIERS[0]
        third *= _MULTIPLIERS[1]
        second ^= third >> half
        second ^= np.uint64(low_key)
        fourth ^= first >> half
        fourth ^= np.uint64(high_key)
        first &= word
        third &= word
        first, second, third, fourth = second, third, fourth, first
        low_key = (low_key + _KEY_INCREMENTS[0]) & _WORD
        high_key = (high_key + _KEY_INCREMENTS[1]) & _WORD
    return xp.stack([first, second, third, fourth], axis=-1)


def uniform(words: Array) -> Array:
    """Turn words into float64 in (0, 1): the midpoint of one of 2**32 equal intervals, so never 0 or 1."""
    return (words.astype(np.float64) + 0.5) * 2.0**-32


def integers(words: Array, bound: int | Array) -> Array:
    """Turn words into int64 in [0, bound); `bound` broadcasts. The bias is below bound / 2**32."""
    xp = array_module(words)
    return (words.astype(np.uint64) * xp.asarray(bound, dtype=np.uint64) >> np.uint64(32)).astype(np.int64)


def keep_threshold(probability: float) -> int:
    """Return the least word that keeps an element in dropout with this `probability`."""
    return min(round(probability * 2**32), _WORD)


@dataclass(frozen=True)
class RandomState:
    """What the next draws depend on: the coordinates in force, and the seed and call counter of draws by hand."""

    coordinates: Coordinates | None
    seed: int
    calls: int


_current: ContextVar[Coordinates | None] = ContextVar("coordinates", default=None)
_seed_by_hand = 0
_calls_by_hand = 0


@contextmanager
def at(coordinates: Coordinates) -> Iterator[None]:
    """Draw dropout inside the block at these coordinates."""
    token = _current.set(coordinates)
    try:
        yield
    finally:
        _current.reset(token)


def current_coordinates(rows: int) -> Coordinates:
    """Return the coordinates set by `at`, or new ones for a call by hand with `rows` rows.

    Raises `ValueError` if the coordinates in force have another number of rows.
    """
    coordinates = _current.get()
    if coordinates is None:
        return coordinates_by_hand(rows)
    if len(coordinates.counters) != rows:
        raise ValueError(f"the coordinates in force have {len(coordinates.counters)} samples, the batch has {rows}")
    return coordinates


def coordinates_by_hand(rows: int) -> Coordinates:
    """Return new coordinates, which follow from `manual_seed` and the number of calls since."""
    global _calls_by_hand
    _calls_by_hand += 1
    return Coordinates.of(_seed_by_hand, _calls_by_hand - 1, np.arange(rows))


def manual_seed(seed: int) -> None:
    """Seed the draws by hand: initial weights, and dropout and masks outside a training run."""
    global _seed_by_hand, _calls_by_hand
    _seed_by_hand, _calls_by_hand = seed, 0


def state() -> RandomState:
    """Return what the next draws depend on, for `using`."""
    return RandomState(_current.get(), _seed_by_hand, _calls_by_hand)


@contextmanager
def using(state: RandomState) -> Iterator[None]:
    """Repeat inside the block the draws that followed `state`; draws after the block are not affected."""
    global _seed_by_hand, _calls_by_hand
    before = _seed_by_hand, _calls_by_hand
    token = _current.set(state.coordinates)
    _seed_by_hand, _calls_by_hand = state.seed, state.calls
    try:
        yield
    finally:
        _current.reset(token)
        _seed_by_hand, _calls_by_hand = before
