"""Compares compiled kernels with the reference, which is given the same numbers in double precision."""

from dataclasses import replace

import numpy as np
from kernel_arguments import ADAM, FACTORS
from targets import call

from lucid.kernels import reference

# A unit in the last place of float32, relative.
ULP = 2.0**-23
SHAPES = [(1, 1, 1), (2, 3, 5), (3, 1, 64), (2, 70, 33), (1, 129, 768)]


def doubled(value):
    return value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype == np.float32 else value


def assert_agrees(cpu, name, *arguments, ulps=16.0, **settings):
    """Compare a kernel's results with the reference's, to `ulps` of the greatest number in each."""
    got = call(cpu, name, *arguments, **settings)
    expected = call(reference, name, *map(doubled, arguments), **settings)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=ulps * ULP, atol=ulps * ULP * np.abs(other).max(initial=0))
    return got


def of_rows(dropout, sequences):
    """The same dropout, with the coordinates of the rows."""
    if dropout.coordinates is None:
        return dropout
    return replace(dropout, coordinates=sequences.coordinates(dropout.coordinates))


def lamb_steps(kernels, buffers, bounds):
    """Take two steps in place, with a different rate in each block, and return the sums of squares."""
    rates = 1e-2 * np.arange(1.0, len(bounds))
    squares = []
    for _ in range(2):
        squares.append(kernels.lamb_moments(buffers, bounds, FACTORS, ADAM))
        kernels.lamb_update(buffers, bounds, rates, FACTORS, ADAM)
    return squares
