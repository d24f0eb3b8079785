"""AdamW: Loshchilov & Hutter, "Decoupled weight decay regularization", 2019."""

from lucid import kernels
from lucid.optim.moments import MomentOptimizer


class AdamW(MomentOptimizer):
    """One pass over the flat buffers."""

    def update(self, learning_rate: float, gradient_scale: float, corrections: tuple[float, float]) -> None:
        flat = self.flat
        for part in flat.ownership.parts:
            kernels.of(flat.values).adamw(
                flat.values[part.elements],
                flat.gradients[part.elements],
                self.first_moments[part.own],
                self.second_moments[part.own],
                learning_rate=learning_rate,
                betas=self.betas,
                epsilon=self.epsilon,
                weight_decay=self.weight_decay if part.decay else 0.0,
                corrections=corrections,
                gradient_scale=gradient_scale,
            )
