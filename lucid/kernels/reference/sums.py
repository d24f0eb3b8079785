"""Sums of squares over a whole buffer, in double precision."""

from itertools import pairwise

import numpy as np

from lucid.backend import Array, array_module


def squared_sums(x: Array, bounds: Array) -> Array:
    sums = [(x[start:stop].astype(np.float64) ** 2).sum() for start, stop in pairwise(bounds.tolist())]
    return array_module(x).stack(sums)


def root_of_sum(sums: Array) -> Array:
    xp = array_module(sums)
    return xp.asarray(xp.sqrt(sums.sum()))
