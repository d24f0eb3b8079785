"""The catalogue: one typed signature for every fused kernel that training BERT needs.

`of(array)` returns the kernels for the array's device and dtype. An implementation is a module with a function for
each entry of `Kernels`, of the same signature; it may be faster than `reference`, never richer, and is tested against
it.

Legend: B batch, T length, C width, H heads, V vocabulary, N rows (all leading dimensions), I and O a layer's inputs and
outputs. Arrays are float32 or float64 unless said otherwise. Gradients of parameters are put into a `Target`, which
says whether they are written or added there; where it may be None, the gradient is not wanted. Dropout masks follow
from (`stream`, `coordinates`, element of the sample); see `lucid.random`. They are drawn in forward and again in
backward, or kept as bits.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import ml_dtypes
import numpy as np

from lucid.backend import CPU, Array, array_module
from lucid.errors import ConfigError
from lucid.kernels import reference, threads
from lucid.kernels.sequences import Sequences
from lucid.kernels.targets import Target
from lucid.random import Coordinates

Activation = Literal["gelu", "gelu_new", "relu"]
Precision = Literal["float32", "bfloat16"]

# What the compiled kernels are for.
_COMPILED = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)

_wrapper: "Callable[[Kernels], Kernels] | None" = None
# The precision chosen last.
_precision: Precision = "float32"


class Products(Protocol):
    """The products of linear layers, as of `Kernels`."""

    def product_input(self, x: Array) -> Array: ...

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array: ...

    def linear_input_gradient(self, gradient: Array, weight: Array) -> Array: ...

    def linear_weight_gradient(self, gradient: Array, x: Array, by_weight: Target) -> None: ...


class Kernels(Protocol):
    """The catalogue itself."""

    def product_input(self, x: Array) -> Array:
        """Return x [..., C] as products take it: itself, or rounded once for several products. See `set_precision`.

        `linear`, `attention` and their gradients take x, weight, gradient and `joined` either way.
        """

    def linear(self, x: Array, weight: Array, bias: Array | None, out: Array | None = None) -> Array:
        """Return x [..., I] times weight [O, I] transposed, plus bias [O]: [..., O].

        It is written to `out`, which may be some columns of an array, if x is [N, I] and `out` [N, O] is given. Where x
        is an `product_input` that was rounded, `out` may be of its dtype.
        """

    def linear_input_gradient(
        self, gradient: Array, weight: Array, addend: Array | None = None, out: Array | None = None
    ) -> Array:
        """Return gradient [..., O] times weight [O, I], plus `addend` [..., I] if that is given: [..., I].

        It is written to `out`, which may be `addend` itself, if that is given: in C order, or some columns of an array.
        """

    def linear_weight_gradient(
        self, gradient: Array, x: Array, by_weight: Target, by_bias: Target | None = None
    ) -> None:
        """Put gradient [..., O] transposed times x [..., I] into `by_weight` [O, I].

        `by_bias` [O], if it is given, gets what `linear_bias_gradient` puts there.
        """

    def linear_bias_gradient(self, gradient: Array, by_bias: Target) -> None:
        """Put the sum of gradient [..., O] over all but the last axis into `by_bias` [O]."""

    def activation(self, x: Array, bias: Array | None, kind: Activation) -> Array:
        """Apply gelu (erf form), gelu_new (tanh form) or relu to each element of x [..., C] plus bias [C].

        Hendrycks & Gimpel, 2016.
        """

    def activation_gradient(
        self, gradient: Array, x: Array, bias: Array | None, kind: Activation, by_bias: Target | None
    ) -> Array:
        """Return the gradient of `activation` by x [..., C], and put that by bias into `by_bias` [C]."""

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
        """Return the gradient of `layer_norm` by x, and put those by weight and bias into their targets [C]."""

    def dropout(self, x: Array, probability: float, stream: int, coordinates: Coordinates) -> Array:
        """Zero elements of x [B, ...] with `probability`, scale the rest by 1 / (1 - probability).

        It is linear and draws the same mask at the same coordinates: applied to a gradient it is its own backward.
        """

    def dropout_add_layer_norm(
        self,
        x: Array,
        bias: Array,
        residual: Array,
        weight: Array,
        shift: Array,
        epsilon: float,
        probability: float,
        stream: int,
        coordinates: Coordinates | None,
    ) -> tuple[Array, Array, Array, Array]:
        """Add bias [C] to x [B, ..., C], drop out, add residual [B, ..., C], and normalise as `layer_norm` does.

        Return (output, the sum that was normalised, its mean [N, 1], its reciprocal deviation [N, 1]). Without
        `coordinates` nothing is dropped.
        """

    def dropout_add_layer_norm_gradient(
        self,
        gradient: Array,
        total: Array,
        weight: Array,
        mean: Array,
        reciprocal: Array,
        probability: float,
        stream: int,
        coordinates: Coordinates | None,
        by_bias: Target | None,
        by_weight: Target | None,
        by_shift: Target | None,
    ) -> tuple[Array, Array]:
        """Return the gradients of `dropout_add_layer_norm` by x and residual, which are one array if nothing drops.

        Those by bias, weight and shift are put into their targets [C]. `total` is the sum that was normalised.
        """

    def embedding(self, table: Array, ids: Array, addend: Array | None = None) -> Array:
        """Return the rows of table [V, C] at ids [...] (integers in [0, V)): [..., C].

        `addend` [..., C], if it is given, is added to them.
        """

    def embedding_gradient(
        self, gradient: Array, ids: Array, out: Array, accumulate: bool, padding_id: int | None
    ) -> None:
        """Write (or add) to out [V, C] the rows of gradient [..., C], each at its id [...], in a fixed order.

        Rows whose id is `padding_id` do not count.
        """

    def attention(
        self,
        joined: Array,
        sequences: Sequences,
        heads: int,
        probability: float,
        stream: int,
        coordinates: Coordinates | None,
    ) -> tuple[Array, Any]:
        """Scaled dot-product attention (Vaswani et al., 2017), split into heads, of each sequence to itself.

        Query, key and value lie side by side in `joined` [N, 3C], perhaps a `product_input`. Of a sequence's rows those
        in `sequences.mask` count as keys; the probabilities pass through dropout, which draws for row i and key j of
        head h element (h * T + i) * T + j of the sample, i and j being their positions. `coordinates` are of the rows.
        Return (output [N, C] of the dtype of `joined`, what `attention_gradient` needs of it). The latter is for an
        implementation to choose: the probabilities before dropout, [H, L, L] of each sequence of length L, all in one
        [P]; or the output, the log of the sum of exponentials of each row, and a bit for each probability that is kept.
        """

    def attention_gradient(
        self,
        gradient: Array,
        joined: Array,
        saved: Any,
        sequences: Sequences,
        heads: int,
        probability: float,
        stream: int,
        coordinates: Coordinates | None,
    ) -> Array:
        """Return the gradient of `attention` by `joined`, in its dtype, for gradient [N, C], perhaps a `product_input`.

        `saved` is what `attention` returned beside the output.
        """

    def cross_entropy(
        self, logits: Array, labels: Array, ignore_index: int, vocabulary: int | None = None
    ) -> tuple[Array, Array]:
        """Return (losses [N], log of the sum of exponentials [N]) of logits [N, V] at labels [N] (integers).

        The loss of a row whose label is `ignore_index` is 0. With `vocabulary` logits are [N, W], of which the first V
        columns count: the others are there for rows to begin where products are fast.
        """

    def cross_entropy_gradient(
        self,
        gradient: Array,
        logits: Array,
        labels: Array,
        log_sum: Array,
        ignore_index: int,
        vocabulary: int | None = None,
    ) -> Array:
        """Return the gradient of `cross_entropy` by logits, for gradient [N] by the losses.

        Columns that do not count get 0.
        """

    def argmax(self, x: Array, vocabulary: int | None = None) -> Array:
        """Return the place of the greatest number of each row of x [..., V], the first of equals: int64 [...].

        With `vocabulary` x is [..., W], as of `cross_entropy`.
        """

    def squared_sums(self, x: Array, bounds: Array) -> Array:
        """Return float64 [K]: the sums of the squares of x [N] in each block x[bounds[k]:bounds[k + 1]].

        bounds [K + 1] (int64, in host memory) rise from 0 to N.
        """

    def root_of_sum(self, sums: Array) -> Array:
        """Return the square root of the sum of sums [K] (float64): float64, an array of no dimensions."""

    def round_to_bfloat16(self, x: Array, out: Array | None = None) -> Array:
        """Return x (float32) as bfloat16, each number rounded to the nearest, ties to even.

        It is written to `out`, of the shape of x and in C order, if that is given.
        """

    def update_factors(
        self,
        learning_rate: float | Array,
        gradient_scale: float | Array,
        updates: Array,
        betas: tuple[float, float] | None,
    ) -> Array:
        """Count an update in `updates` [1] (int64), and return what changes from one to the next: float64 [4].

        These are the learning rate, what gradients are multiplied by, and 1 / (1 - beta1**u) and 1 / sqrt(1 - beta2**u)
        for update number u, by which Adam's direction and the root in it are multiplied: 1 without `betas`. Rate and
        scale may be float64 arrays of no dimensions. Where the scale is not finite nothing is counted, and the kernels
        that take these `factors` change nothing.
        """

    def adamw(
        self,
        values: Array,
        gradients: Array,
        first_moments: Array,
        second_moments: Array,
        factors: Array,
        *,
        betas: tuple[float, float],
        epsilon: float,
        weight_decay: float,
        bfloat16_copy: Array | None = None,
    ) -> None:
        """Update values [N] and moments in place. Loshchilov & Hutter, "Decoupled weight decay regularization", 2019.

        `factors` are of `update_factors`. `bfloat16_copy` [N] (bfloat16), if it is given, gets the new values.
        """

    def lamb_moments(
        self,
        values: Array,
        gradients: Array,
        first_moments: Array,
        second_moments: Array,
        bounds: Array,
        factors: Array,
        *,
        betas: tuple[float, float],
        epsilon: float,
        weight_decay: float,
    ) -> Array:
        """Fold gradients [N] into the moments in place. You et al., 2019, algorithm 2, up to the norms.

        Return float64 [K, 2]: the sums of the squares of values and of update in each block, as of `squared_sums`. The
        update is Adam's direction plus `weight_decay` times values [N]. `factors` are of `update_factors`; where they
        let nothing change, the sums are 0.
        """

    def lamb_rates(self, squares: Array, first_blocks: Array, adapting: int, factors: Array) -> Array:
        """Return for each block of `lamb_moments` the rate of its parameter: float64 [K].

        It is the learning rate, and for the first `adapting` parameters, if neither norm is 0, that times |values| /
        |update|. `squares` are [K, 2]; a parameter's blocks begin at its number in `first_blocks` (int64, in host
        memory).
        """

    def lamb_update(
        self,
        values: Array,
        first_moments: Array,
        second_moments: Array,
        bounds: Array,
        rates: Array,
        factors: Array,
        *,
        epsilon: float,
        weight_decay: float,
        bfloat16_copy: Array | None = None,
    ) -> None:
        """Subtract from values [N] the update of `lamb_moments` times the rate of its block: rates [K] of `lamb_rates`.

        `factors` are of `update_factors`. `bfloat16_copy` [N] (bfloat16), if it is given, gets the new values.
        """


def of(array: Array) -> Kernels:
    """Return the kernels for the device and the dtype of `array`.

    float32 has compiled ones, and so has bfloat16, on the CPU as an `product_input` only, unless the environment says
    `LUCID_KERNELS=reference`. Everything else, and with it the gradient checks in float64, has the reference. Raises
    `ConfigError` if they cannot be had.
    """
    implementation = _compiled_for(array) if array.dtype in _COMPILED else reference
    return implementation if _wrapper is None else _wrapper(implementation)


def products_of(array: Array) -> Products:
    """Return the products among `of(array)`, which on the CPU are there without the compiled kernels."""
    if array.dtype not in _COMPILED or _reference_is_asked_for():
        return reference
    if array_module(array) is not np:
        return _on_gpu()
    from lucid.kernels import products

    return products


def wrap(wrapper: Callable[[Kernels], Kernels] | None) -> None:
    """Let `of` return what `wrapper` makes of the kernels, such as one that times them; None ends that."""
    global _wrapper
    _wrapper = wrapper


def set_precision(precision: Precision) -> str | None:
    """Let products of linear layers and attention over float32 arrays on the CPU round their operands to `precision`.

    This holds for the whole process from now on. Products are added in float32 either way, and results are float32, but
    for those between the products of attention. Returns a sentence for the user if that is slow here. Raises
    `ConfigError` if it cannot be had.
    """
    global _precision
    remark = None
    if not _reference_is_asked_for():
        from lucid.kernels import products

        remark = products.set_precision(precision)
    elif precision != "float32":
        raise ConfigError(f"the reference kernels have no {precision} products: unset LUCID_KERNELS, or choose float32")
    _precision = precision
    return remark


def check_gpu_kernels() -> None:
    """Raise `ConfigError` if the environment asks for the reference kernels, which cannot train on a GPU.

    They need to know on the host where sequences begin; training on a GPU has these tables in its memory alone.
    """
    if _on_gpu() is reference:
        raise ConfigError(
            "the reference kernels do not train on a GPU: unset LUCID_KERNELS, or set train.device to cpu"
        )


@contextmanager
def timed_products() -> Iterator[None]:
    """Inside the block, make each product on a GPU by the algorithm that is the fastest for it.

    The first time, all algorithms are timed; the choice is kept for this kind of card. Outside of the block a product
    is made by the library's own choice, which gives the same bits with nothing kept.
    """
    if _on_gpu() is reference:
        yield
        return
    from lucid.kernels.cuda import plans

    with plans.timed():
        yield


@contextmanager
def choices_kept() -> Iterator[None]:
    """Restore the precision and `threads.limit` after the block."""
    before = _precision
    with threads.limit_kept():
        try:
            yield
        finally:
            if _precision != before:
                set_precision(before)


def product_library(device: str = CPU) -> str:
    """Return which library multiplies the arrays on `device`, with what its results depend on."""
    if device != CPU:
        if _on_gpu() is reference:
            return "CuPy's"
        from lucid.kernels.cuda import cublaslt

        return f"cuBLASLt {cublaslt.library().version}"
    if _reference_is_asked_for():
        return "NumPy's"
    from lucid.kernels import products

    return products.library_name()


def _compiled_for(array: Array) -> Kernels:
    return _on_cpu() if array_module(array) is np else _on_gpu()


def _reference_is_asked_for() -> bool:
    choice = os.environ.get("LUCID_KERNELS", "")
    if choice not in ("", "reference"):
        raise ConfigError(f"LUCID_KERNELS is {choice!r}; it takes 'reference', or is not set")
    return choice == "reference"


@functools.cache
def _on_gpu() -> Kernels:
    """Return the kernels for float32 and bfloat16 on a GPU. Each is compiled, or loaded, when it is first used."""
    if _reference_is_asked_for():
        return reference
    from lucid.kernels import cuda

    return cuda


@functools.cache
def _on_cpu() -> Kernels:
    """Return the kernels for float32 on the CPU. Numba is loaded, and perhaps compiles, at the first call only."""
    if _reference_is_asked_for():
        return reference
    try:
        from lucid.kernels import cpu
    except ImportError as error:
        raise ConfigError(
            f"the compiled kernels need Numba, which cannot be loaded ({error}): pip install numba, "
            "or set LUCID_KERNELS=reference for slower ones"
        ) from error
    cpu.load()
    return cpu
