"""LAMB: You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", 2019."""

import numpy as np

from lucid import kernels
from lucid.backend import Array, to_host
from lucid.nn.parameters import Part
from lucid.optim.moments import MomentOptimizer


class LAMB(MomentOptimizer):
    """Adam's direction, scaled for each parameter by the ratio of its norm to the update's.

    Parameters without weight decay (biases, LayerNorm) keep the plain learning rate.
    """

    def update(self, learning_rate: float, gradient_scale: float, corrections: tuple[float, float]) -> None:
        flat, kernel = self.flat, kernels.of(self.flat.values)
        squares = np.zeros((len(flat.bounds) - 1, 2))
        for part in flat.ownership.parts:
            values, first_moments, second_moments = self._buffers_of(part)
            squares[part.blocks] = to_host(
                kernel.lamb_moments(
                    values,
                    flat.gradients[part.elements],
                    first_moments,
                    second_moments,
                    part.bounds,
                    betas=self.betas,
                    epsilon=self.epsilon,
                    weight_decay=self._decay_of(part),
                    corrections=corrections,
                    gradient_scale=gradient_scale,
                )
            )
        flat.ownership.complete(squares)
        rates = learning_rate * self._trust(squares)
        for part in flat.ownership.parts:
            kernel.lamb_update(
                *self._buffers_of(part),
                part.bounds,
                rates[part.blocks],
                epsilon=self.epsilon,
                weight_decay=self._decay_of(part),
                corrections=corrections,
            )

    def _trust(self, squares: np.ndarray) -> np.ndarray:
        """Return for each block |values| / |update| of its parameter, from the squares [blocks, 2]; 1 without decay."""
        flat = self.flat
        value_norms, update_norms = np.sqrt(np.add.reduceat(squares, flat.first_blocks)).T
        adapts = np.array([segment.decay for segment in flat.segments]) & (value_norms > 0) & (update_norms > 0)
        trust = np.where(adapts, value_norms / np.where(adapts, update_norms, 1), 1)
        return np.repeat(trust, np.diff(flat.first_blocks, append=len(squares)))

    def _buffers_of(self, part: Part) -> tuple[Array, Array, Array]:
        return self.flat.values[part.elements], self.first_moments[part.own], self.second_moments[part.own]

    def _decay_of(self, part: Part) -> float:
        return self.weight_decay if part.decay else 0.0
