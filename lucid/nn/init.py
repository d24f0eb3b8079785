"""Initial weights, drawn from `lucid.manual_seed` and the number of calls since."""

import numpy as np
from scipy import special

from lucid import random
from lucid.backend import Array


def truncated_normal(shape: tuple[int, ...], deviation: float) -> Array:
    """Return float32 of a normal distribution of this deviation, cut off at two of them (as in the original BERT)."""
    coordinates = random.coordinates_by_hand(rows=1)
    count = int(np.prod(shape))
    words = random.random_words(random.Stream.BY_HAND, coordinates, count)[0]
    below, above = special.ndtr(-2.0), special.ndtr(2.0)
    values = special.ndtri(below + random.uniform(words) * (above - below))
    return (values * deviation).astype(np.float32).reshape(shape)


def zeros(*shape: int) -> Array:
    return np.zeros(shape, dtype=np.float32)


def ones(*shape: int) -> Array:
    return np.ones(shape, dtype=np.float32)
