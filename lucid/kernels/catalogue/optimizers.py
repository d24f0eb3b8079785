"""AdamW and LAMB. All kernels but `lamb_rates` update N elements in place."""

from typing import Protocol

from lucid.backend import Array
from lucid.kernels.arguments import AdamSettings, UpdateBuffers


class OptimizerKernels(Protocol):
    """`factors` are returned by `update_factors`. If its scale was not finite, the other kernels change nothing.

    `bounds` (int64 [K + 1]) are the bounds of the blocks of the N elements. If `squares` (float64 [K, 2]) are given, an
    update also writes, for each block, the sums of the squares of the change and of the new values.
    """

    def update_factors(
        self,
        learning_rate: float | Array,
        gradient_scale: float | Array,
        updates: Array,
        betas: tuple[float, float] | None,
    ) -> Array:
        """Count an update in `updates` [1] (int64), and return the factors that change from update to update.

        They are float64 [4]: the learning rate, the scale of the gradients, and 1 / (1 - beta1**u) and
        1 / sqrt(1 - beta2**u) for update number u, which multiply Adam's direction and its root; both are 1 without
        `betas`. Rate and scale may be float64 arrays of no dimensions. A scale that is not finite counts no update.
        """

    def adamw(
        self,
        buffers: UpdateBuffers,
        bounds: Array,
        factors: Array,
        settings: AdamSettings,
        squares: Array | None = None,
    ) -> None:
        """Update values and moments. Loshchilov & Hutter, "Decoupled weight decay regularization", 2019."""

    def lamb_moments(self, buffers: UpdateBuffers, bounds: Array, factors: Array, settings: AdamSettings) -> Array:
        """Fold the gradients into the moments. You et al., 2019, algorithm 2, up to the norms.

        Return float64 [K, 2]: the sums of the squares of values and of update in each block: see `squared_sums`. The
        update is Adam's direction plus weight decay times values. If nothing changes, the sums are 0.
        """

    def lamb_rates(self, squares: Array, first_blocks: Array, adapting: int, factors: Array) -> Array:
        """Return for each block of `lamb_moments` the rate of its parameter: float64 [K].

        The rate is the learning rate; for the first `adapting` parameters it is multiplied by |values| / |update| if
        neither norm is 0. `squares` are [K, 2]; the blocks of a parameter begin at its number in `first_blocks` (int64,
        in host memory).
        """

    def lamb_update(
        self,
        buffers: UpdateBuffers,
        bounds: Array,
        rates: Array,
        factors: Array,
        settings: AdamSettings,
        squares: Array | None = None,
    ) -> None:
        """Subtract from values the update of `lamb_moments` times the rate of its block: rates [K] of `lamb_rates`."""
