"""Activations and dropout."""

from typing import Literal, Protocol

from lucid.backend import Array
from lucid.kernels.arguments import Dropout
from lucid.kernels.targets import Target

Activation = Literal["gelu", "gelu_new", "relu"]


class ElementwiseKernels(Protocol):
    def activation(self, x: Array, bias: Array | None, kind: Activation) -> Array:
        """Apply gelu (erf form), gelu_new (tanh form) or relu to each element of x [..., C] plus bias [C].

        Hendrycks & Gimpel, 2016.
        """

    def activation_gradient(
        self, gradient: Array, x: Array, bias: Array | None, kind: Activation, by_bias: Target | None
    ) -> Array:
        """Return the gradient of `activation` by x [..., C], and put the gradient by bias into `by_bias` [C]."""

    def dropout(self, x: Array, dropout: Dropout) -> Array:
        """Apply dropout to x [B, ...].

        The operation is linear and draws the same mask each time: applied to a gradient it is its own backward.
        """
