"""The arguments by which kernels draw dropout."""

from typing import Any

import numpy as np

from lucid.backend import Array, array_module
from lucid.kernels.arguments import Dropout
from lucid.kernels.cuda.arrays import plain
from lucid.random import keep_threshold


def dropout_arguments(like: Array, dropout: Dropout) -> tuple[Any, ...]:
    """Return the arguments for DROPOUT_PARAMETERS of philox.cuh, with their arrays on the device of `like`."""
    coordinates = dropout.coordinates
    if coordinates is None:
        return None, None, *map(np.uint32, (0, 0, 0, 0)), np.float32(1)
    xp, positions = array_module(like), coordinates.positions
    words = dropout.purpose, coordinates.seed, coordinates.seed >> 32
    return (
        plain(xp.asarray(coordinates.counters), np.int64),
        None if positions is None else plain(xp.asarray(positions), np.int64),
        *(np.uint32(word & 0xFFFFFFFF) for word in words),
        np.uint32(keep_threshold(dropout.probability)),
        np.float32(1 / (1 - dropout.probability)),
    )
