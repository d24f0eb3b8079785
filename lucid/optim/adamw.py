"""AdamW: Loshchilov & Hutter, "Decoupled weight decay regularization", 2019."""

from lucid import kernels
from lucid.backend import Array
from lucid.optim.moments import MomentOptimizer


class AdamW(MomentOptimizer):
    """AdamW over flat buffers, in one pass. The arguments are those of `MomentOptimizer`."""

    def update(self, factors: Array) -> None:
        kernel = kernels.of(self.flat.values)
        for part in self.partition.slices:
            buffers, settings, squares = self._buffers_of(part), self._settings_of(part), self._squares_of(part)
            kernel.adamw(buffers, part.bounds, factors, settings, squares)
