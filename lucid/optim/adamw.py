"""AdamW: Loshchilov & Hutter, "Decoupled weight decay regularization", 2019."""

from lucid import kernels
from lucid.backend import Array
from lucid.optim.moments import MomentOptimizer


class AdamW(MomentOptimizer):
    """One pass over the flat buffers."""

    def update(self, factors: Array) -> None:
        flat = self.flat
        for part in flat.ownership.parts:
            kernels.of(flat.values).adamw(
                flat.values[part.elements],
                flat.gradients[part.elements],
                self.first_moments[part.own],
                self.second_moments[part.own],
                factors,
                betas=self.betas,
                epsilon=self.epsilon,
                weight_decay=self.weight_decay if part.decay else 0.0,
                rounded=self._rounded(part),
            )
