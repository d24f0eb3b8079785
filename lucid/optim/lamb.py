"""LAMB: You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", 2019."""

from lucid import kernels
from lucid.optim.moments import MomentOptimizer


class LAMB(MomentOptimizer):
    """Adam's direction, scaled for each parameter by the ratio of its norm to the update's.

    Parameters without weight decay (biases, LayerNorm) keep the plain learning rate.
    """

    def update(self, learning_rate: float, gradient_scale: float, corrections: tuple[float, float]) -> None:
        flat = self.flat
        for segment in flat.segments:
            part = slice(segment.start, segment.stop)
            kernels.of(flat.values).lamb(
                flat.values[part],
                flat.gradients[part],
                self.first_moments[part],
                self.second_moments[part],
                learning_rate=learning_rate,
                betas=self.betas,
                epsilon=self.epsilon,
                weight_decay=self.weight_decay if segment.decay else 0.0,
                corrections=corrections,
                gradient_scale=gradient_scale,
                adapt=segment.decay,
            )
