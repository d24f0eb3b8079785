"""AdamW: Loshchilov & Hutter, "Decoupled weight decay regularization", 2019."""

from lucid import kernels
from lucid.optim.moments import MomentOptimizer


class AdamW(MomentOptimizer):
    """One pass over each of the two regions of the flat buffers, with and without weight decay."""

    def update(self, learning_rate: float, gradient_scale: float, corrections: tuple[float, float]) -> None:
        flat, stop = self.flat, self.flat.decay_stop
        for region, weight_decay in ((slice(0, stop), self.weight_decay), (slice(stop, None), 0.0)):
            kernels.of(flat.values).adamw(
                flat.values[region],
                flat.gradients[region],
                self.first_moments[region],
                self.second_moments[region],
                learning_rate=learning_rate,
                betas=self.betas,
                epsilon=self.epsilon,
                weight_decay=weight_decay,
                corrections=corrections,
                gradient_scale=gradient_scale,
            )
