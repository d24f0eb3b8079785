"""Products of linear layers."""

from typing import Protocol

from lucid.backend import Array
from lucid.kernels.targets import Target


class Products(Protocol):
    """The products alone, which on the CPU need no compiled kernels."""

    def product_input(self, x: Array) -> Array: ...

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array: ...

    def linear_input_gradient(self, gradient: Array, weight: Array) -> Array: ...

    def linear_weight_gradient(self, gradient: Array, x: Array, by_weight: Target) -> None: ...


class ProductKernels(Protocol):
    def product_input(self, x: Array) -> Array:
        """Return x [..., C] as products multiply it: itself, or rounded once for several products.

        See `kernels.set_precision`. `linear`, `attention` and their gradients take their inputs in either form.
        """

    def linear(self, x: Array, weight: Array, bias: Array | None, out: Array | None = None) -> Array:
        """Return x [..., I] times weight [O, I] transposed, plus bias [O]: [..., O].

        If x is [N, I], the result may be written to `out` [N, O], which may be some columns of a wider array. If x is a
        rounded `product_input`, `out` may have its dtype.
        """

    def linear_input_gradient(
        self, gradient: Array, weight: Array, addend: Array | None = None, out: Array | None = None
    ) -> Array:
        """Return gradient [..., O] times weight [O, I], plus `addend` [..., I] if given: [..., I].

        The result is written to `out` if given: an array in C order, some columns of a wider array, or `addend` itself.
        """

    def linear_weight_gradient(
        self, gradient: Array, x: Array, by_weight: Target, by_bias: Target | None = None
    ) -> None:
        """Put gradient [..., O] transposed times x [..., I] into `by_weight` [O, I].

        If `by_bias` [O] is given, also do `linear_bias_gradient`.
        """

    def linear_bias_gradient(self, gradient: Array, by_bias: Target) -> None:
        """Put the sum of gradient [..., O] over all but the last axis into `by_bias` [O]."""

    def round_to_bfloat16(self, x: Array, out: Array | None = None) -> Array:
        """Return x (float32) as bfloat16, each number rounded to the nearest, ties to even.

        The result is written to `out` if given, which is in C order and has the shape of x.
        """
