"""Sums of squares over a whole buffer, in double precision."""

from typing import Protocol

from lucid.backend import Array


class SumKernels(Protocol):
    def squared_sums(self, x: Array, bounds: Array) -> Array:
        """Return float64 [K]: the sums of the squares of x [N] in each block x[bounds[k]:bounds[k + 1]].

        bounds [K + 1] (int64, in host memory) rise from 0 to N.
        """

    def root_of_sum(self, sums: Array) -> Array:
        """Return the square root of the sum of sums [K] (float64): float64, an array of no dimensions."""
