"""AdamW: Loshchilov & Hutter, "Decoupled weight decay regularization", 2019."""

from lucid import kernels
from lucid.backend import Array
from lucid.optim.moments import MomentOptimizer


class AdamW(MomentOptimizer):
    """One pass over the flat buffers."""

    def update(self, factors: Array) -> None:
        flat = self.flat
        for part in self.partition.slices:
            values, first_moments, second_moments = self._buffers_of(part)
            kernels.of(flat.values).adamw(
                values,
                flat.gradients[part.elements],
                first_moments,
                second_moments,
                factors,
                betas=self.betas,
                epsilon=self.epsilon,
                weight_decay=self._decay_of(part),
                bfloat16_copy=self._bfloat16_copy_of(part),
            )
