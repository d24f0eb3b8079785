"""What kernels draw random numbers by."""

from typing import Any

import numpy as np

from lucid.backend import Array, array_module
from lucid.kernels.cuda.arrays import plain
from lucid.random import Coordinates, keep_threshold


def draws(like: Array, probability: float, stream: int, coordinates: Coordinates | None) -> tuple[Any, ...]:
    """Return the arguments for DRAWS of philox.cuh, on the device of `like`. Without coordinates nothing is dropped."""
    if coordinates is None:
        return None, None, *map(np.uint32, (0, 0, 0, 0)), np.float32(1)
    xp, positions = array_module(like), coordinates.positions
    words = stream, coordinates.seed, coordinates.seed >> 32
    return (
        plain(xp.asarray(coordinates.counters), np.int64),
        None if positions is None else plain(xp.asarray(positions), np.int64),
        *(np.uint32(word & 0xFFFFFFFF) for word in words),
        np.uint32(keep_threshold(probability)),
        np.float32(1 / (1 - probability)),
    )
