"""LAMB: You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", 2019."""

import numpy as np

from lucid import kernels
from lucid.backend import Array, array_module
from lucid.optim.moments import MomentOptimizer


class LAMB(MomentOptimizer):
    """Adam's direction, scaled for each parameter by the ratio of its norm to the update's.

    Parameters without weight decay (biases, LayerNorm) keep the plain learning rate.
    """

    def update(self, factors: Array) -> None:
        flat, kernel = self.flat, kernels.of(self.flat.values)
        squares = array_module(flat.values).zeros((len(flat.bounds) - 1, 2), np.float64)
        for part in self.partition.slices:
            buffers, settings = self._buffers_of(part), self._settings_of(part)
            squares[part.blocks] = kernel.lamb_moments(buffers, part.bounds, factors, settings)
        self.partition.complete(squares)
        # Parameters with weight decay come first.
        adapting = sum(segment.decay for segment in flat.segments)
        rates = kernel.lamb_rates(squares, flat.first_blocks, adapting, factors)
        for part in self.partition.slices:
            buffers, settings, of_update = self._buffers_of(part), self._settings_of(part), self._squares_of(part)
            kernel.lamb_update(buffers, part.bounds, rates[part.blocks], factors, settings, of_update)
