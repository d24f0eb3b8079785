"""Layer normalisation, alone or fused with the bias, the dropout and the residual sum before it."""

from typing import Protocol

from lucid.backend import Array
from lucid.kernels.arguments import Dropout
from lucid.kernels.targets import Target


class LayerNormKernels(Protocol):
    def layer_norm(self, x: Array, weight: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
        """Normalise x [..., C] over C. Return (output, mean [N, 1], reciprocal deviation [N, 1]). Ba et al., 2016."""

    def layer_norm_gradient(
        self,
        gradient: Array,
        x: Array,
        weight: Array,
        mean: Array,
        reciprocal: Array,
        by_weight: Target | None,
        by_bias: Target | None,
    ) -> Array:
        """Return the gradient of `layer_norm` by x; put the gradients by weight and bias into their targets [C]."""

    def dropout_add_layer_norm(
        self, x: Array, bias: Array, residual: Array, weight: Array, shift: Array, epsilon: float, dropout: Dropout
    ) -> tuple[Array, Array, Array, Array]:
        """Add bias [C] to x [B, ..., C], drop out, add residual [B, ..., C], and normalise like `layer_norm`.

        Return (output, the sum that was normalised, its mean [N, 1], its reciprocal deviation [N, 1]).
        """

    def dropout_add_layer_norm_gradient(
        self,
        gradient: Array,
        total: Array,
        weight: Array,
        mean: Array,
        reciprocal: Array,
        dropout: Dropout,
        by_bias: Target | None,
        by_weight: Target | None,
        by_shift: Target | None,
    ) -> tuple[Array, Array]:
        """Return the gradients of `dropout_add_layer_norm` by x and residual: one array if nothing is dropped.

        The gradients by bias, weight and shift go into their targets [C]. `total` is the sum that was normalised.
        """
