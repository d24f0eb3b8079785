"""The differentiable fused operations of BERT: each is a kernel of the catalogue and its backward.

Shapes: B batch, T length, C width, V vocabulary, N rows. Arguments are tensors; ids, labels and masks are arrays.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Literal, TypeVar

import numpy as np

from lucid import kernels
from lucid.autograd import Deferred, Function, Tensor
from lucid.backend import Array, array_module, as_one
from lucid.kernels import Activation
from lucid.kernels.arguments import NO_DROPOUT, Dropout
from lucid.kernels.masking import IGNORE_INDEX
from lucid.kernels.sequences import Sequences
from lucid.kernels.targets import Target
from lucid.random import Purpose, current_coordinates

T = TypeVar("T")


class Linear(Function):
    @staticmethod
    def values_of(tensor: Tensor) -> Array:
        # The product adds the bias, in the dtype of its result.
        return tensor.linear_copy

    def forward(self, x: Array, weight: Array, bias: Array | None) -> Array:
        kernel = kernels.of(x)
        inputs = kernel.product_input(x), kernel.product_input(weight)
        self.save(*inputs, weight, x.dtype)
        return kernel.linear(*inputs, bias)

    def backward(self, gradient: Array) -> Any:
        x, factor, weight, dtype = self.saved
        product_input = kernels.of(gradient).product_input(gradient)
        by_parameters = self.target(1, weight), self.target(2, weight[:, 0])
        _put_by_parameters(gradient, product_input, x, *by_parameters)
        by_x = _by_rows(product_input, [factor], x, dtype) if self.needs[0] else None
        return by_x, *by_parameters


class JoinedLinear(Function):
    """Several linear maps of the same rows, with their outputs side by side: each product writes its own columns.

    If their parameters are adjacent in memory, as `flatten` places them, one product computes all.
    """

    @staticmethod
    def values_of(tensor: Tensor) -> Array:
        return tensor.linear_copy

    def forward(self, x: Array, *parameters: Array) -> Array:
        kernel, half = kernels.of(x), len(parameters) // 2
        layers = _fewest(parameters[:half], parameters[half:], as_one)
        rows, factors = kernel.product_input(x), [kernel.product_input(weight) for weight, _ in layers]
        y = array_module(x).empty((len(x), sum(map(len, factors))), rows.dtype)
        for factor, (_, bias), columns in zip(factors, layers, _columns(factors), strict=True):
            kernel.linear(rows, factor, bias, y[:, columns])
        self.save(rows, factors, parameters[:half], x.dtype)
        return y

    def backward(self, gradient: Array) -> Any:
        x, factors, weights, dtype = self.saved
        half, product_input = 1 + len(weights), kernels.of(gradient).product_input(gradient)
        by_weights = [self.target(1 + number, weight) for number, weight in enumerate(weights)]
        by_biases = [self.target(half + number, weight[:, 0]) for number, weight in enumerate(weights)]
        layers = _fewest(by_weights, by_biases, _as_one_target)
        columns = _columns(weights) if len(layers) > 1 else [slice(None)]
        for part, by_parameters in zip(columns, layers, strict=True):
            _put_by_parameters(gradient[:, part], product_input[:, part], x, *by_parameters)
        by_x = _by_rows(product_input, factors, x, dtype) if self.needs[0] else None
        return by_x, *by_weights, *by_biases


def _fewest(weights: Sequence[T], biases: Sequence[T], join: Callable[[Sequence[T]], T | None]) -> list[tuple[T, T]]:
    """Return the weight and bias of each layer, or of one layer if all weights and all biases can be joined."""
    weight, bias = join(weights), join(biases)
    return list(zip(weights, biases, strict=True)) if weight is None or bias is None else [(weight, bias)]


def _as_one_target(targets: Sequence[Target | None]) -> Target | None:
    """Return one target in place of all, if they are adjacent in memory and either all overwrite or all add."""
    wanted = [target for target in targets if target is not None]
    if len(wanted) < len(targets) or len({target.accumulate for target in wanted}) > 1:
        return None
    out = as_one([target.out for target in wanted])
    return None if out is None else Target(out, wanted[0].accumulate)


def _by_rows(gradient: Array, factors: Sequence[Array], x: Array, dtype: np.dtype) -> Deferred:
    """Return the gradient by x, which had `dtype`, of linear maps with their outputs side by side."""
    kernel = kernels.of(gradient)

    def write(out: Array, addend: Array | None) -> None:
        for factor, part in zip(factors, _columns(factors), strict=True):
            addend = kernel.linear_input_gradient(gradient[..., part], factor, addend, out)

    return Deferred(partial(array_module(x).empty, x.shape, dtype), write)


def _put_by_parameters(
    gradient: Array, product_input: Array, x: Array, by_weight: Target | None, by_bias: Target | None
) -> None:
    """Write the gradients of a linear map to their targets. `product_input` is the gradient as products take it.

    If both are wanted, and products take the gradient without rounding, one kernel computes both.
    """
    kernel = kernels.of(gradient)
    is_rounded = product_input.dtype != gradient.dtype
    if by_weight is not None:
        kernel.linear_weight_gradient(product_input, x, by_weight, None if is_rounded else by_bias)
    if by_bias is not None and (by_weight is None or is_rounded):
        kernel.linear_bias_gradient(gradient, by_bias)


def _columns(weights: Iterable[Array]) -> list[slice]:
    """Return the columns of each map's output, for linear maps with these weights side by side."""
    return [slice(start, stop) for start, stop in pairwise(accumulate(map(len, weights), initial=0))]


class ApplyActivation(Function):
    def forward(self, x: Array, bias: Array | None, *, kind: Activation) -> Array:
        self.save(x, bias, kind)
        return kernels.of(x).activation(x, bias, kind)

    def backward(self, gradient: Array) -> Any:
        x, bias, kind = self.saved
        by_bias = self.target(1, bias)
        return kernels.of(gradient).activation_gradient(gradient, x, bias, kind, by_bias), by_bias


class LayerNorm(Function):
    def forward(self, x: Array, weight: Array, bias: Array, *, epsilon: float) -> Array:
        y, mean, reciprocal = kernels.of(x).layer_norm(x, weight, bias, epsilon)
        self.save(x, weight, mean, reciprocal)
        return y

    def backward(self, gradient: Array) -> Any:
        x, weight, mean, reciprocal = self.saved
        targets = self.target(1, weight), self.target(2, weight)
        return kernels.of(x).layer_norm_gradient(gradient, x, weight, mean, reciprocal, *targets), *targets


class ApplyDropout(Function):
    def forward(self, x: Array, *, probability: float, site: int) -> Array:
        dropout = _dropout_at(site, probability, len(x))
        self.save(dropout)
        return kernels.of(x).dropout(x, dropout)

    def backward(self, gradient: Array) -> Any:
        return kernels.of(gradient).dropout(gradient, *self.saved)


class DropoutAddLayerNorm(Function):
    def forward(
        self,
        x: Array,
        bias: Array,
        residual: Array,
        weight: Array,
        shift: Array,
        *,
        epsilon: float,
        probability: float,
        site: int,
    ) -> Array:
        dropout = _dropout_at(site, probability, len(x))
        kernel = kernels.of(x).dropout_add_layer_norm
        y, total, mean, reciprocal = kernel(x, bias, residual, weight, shift, epsilon, dropout)
        self.save(total, weight, mean, reciprocal, dropout)
        return y

    def backward(self, gradient: Array) -> Any:
        _, weight, *_ = self.saved
        targets = by_bias, *by_norm = [self.target(number, weight) for number in (1, 3, 4)]
        kernel = kernels.of(gradient).dropout_add_layer_norm_gradient
        by_x, by_residual = kernel(gradient, *self.saved, *targets)
        return by_x, by_bias, by_residual, *by_norm


def _dropout_at(site: int, probability: float, rows: int) -> Dropout:
    """Return how to drop out elements of `rows` rows at a site of the model, at the coordinates in force."""
    if probability == 0:
        return NO_DROPOUT
    return Dropout(probability, Purpose.DROPOUT + site, current_coordinates(rows))


class Embedding(Function):
    def forward(self, table: Array, addend: Array | None, *, ids: Array, padding_id: int | None) -> Array:
        self.save(table, ids, padding_id)
        return kernels.of(table).embedding(table, ids, addend)

    def backward(self, gradient: Array) -> Any:
        table, ids, padding_id = self.saved
        kernel = kernels.of(table)

        def write(out: Array, addend: Array | None) -> None:
            if addend is not None and addend is not out:
                out[...] = addend
            kernel.embedding_gradient(gradient, ids, out, addend is not None, padding_id)

        return Deferred(partial(array_module(table).empty_like, table, order="C"), write), gradient


class Attention(Function):
    def forward(self, joined: Array, *, sequences: Sequences, heads: int, probability: float, site: int) -> Array:
        dropout = _dropout_at(site, probability, len(joined))
        kernel = kernels.of(joined)
        joined = kernel.product_input(joined)
        output, saved = kernel.attention(joined, sequences, heads, dropout)
        self.save(joined, saved, sequences, heads, dropout)
        return output

    def backward(self, gradient: Array) -> Any:
        kernel = kernels.of(gradient)
        return kernel.attention_gradient(kernel.product_input(gradient), *self.saved)


class CrossEntropy(Function):
    def forward(self, logits: Array, *, labels: Array, ignore_index: int, vocabulary: int | None) -> Array:
        losses, log_sum = kernels.of(logits).cross_entropy(logits, labels, ignore_index, vocabulary)
        self.save(logits, labels, log_sum, ignore_index, vocabulary)
        return losses

    def backward(self, gradient: Array) -> Any:
        return kernels.of(gradient).cross_entropy_gradient(gradient, *self.saved)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x [..., I] times weight [O, I] transposed, plus bias [O]."""
    return Linear.apply(x, weight, bias)


def joined_linear(x: Tensor, *layers: tuple[Tensor, Tensor]) -> Tensor:
    """Return x [N, I] times each layer's weight [O, I] transposed, plus its bias [O], side by side: [N, sum of O]."""
    return JoinedLinear.apply(x, *(weight for weight, _ in layers), *(bias for _, bias in layers))


def activation(x: Tensor, kind: Activation, bias: Tensor | None = None) -> Tensor:
    """Apply "gelu" (erf form), "gelu_new" (tanh form) or "relu" to each element of x [..., C], plus bias [C]."""
    return ApplyActivation.apply(x, bias, kind=kind)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float = 1e-12) -> Tensor:
    """Normalise x [..., C] over its last axis, then scale by weight [C] and shift by bias [C]."""
    return LayerNorm.apply(x, weight, bias, epsilon=epsilon)


def dropout(x: Tensor, probability: float, site: int = 0, training: bool = True) -> Tensor:
    """Zero elements of x [B, ...] with `probability`, less than 1, and scale up the rest, in training only.

    `site` numbers the dropouts of a model, so that no two draw the same mask. The mask depends on the coordinates in
    force (`lucid.random.at`), or else on `lucid.manual_seed` and the number of calls. Raises `ValueError` for another
    probability.
    """
    if not 0 <= probability < 1:
        raise ValueError(f"probability is {probability}; it takes a number from 0 up to, not including, 1")
    if not training or probability == 0:
        return x
    return ApplyDropout.apply(x, probability=probability, site=site)


def dropout_add_layer_norm(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    weight: Tensor,
    shift: Tensor,
    epsilon: float = 1e-12,
    dropout_probability: float = 0.0,
    site: int = 0,
    training: bool = True,
) -> Tensor:
    """Return layer_norm(dropout(x + bias) + residual, weight, shift) in one operation.

    x and residual are [B, ..., C], bias, weight and shift [C]. See `dropout` for `site` and `training`.
    """
    probability = dropout_probability if training else 0.0
    return DropoutAddLayerNorm.apply(
        x, bias, residual, weight, shift, epsilon=epsilon, probability=probability, site=site
    )


def embedding(ids: Array, table: Tensor, padding_id: int | None = None, addend: Tensor | None = None) -> Tensor:
    """Return the rows of table [V, C] at ids [...] (integers in [0, V), checked by the caller): [..., C].

    `addend` [..., C] is added if given. The row of `padding_id` gets no gradient from this operation.
    """
    return Embedding.apply(table, addend, ids=ids, padding_id=padding_id)


def attention(
    joined: Tensor,
    sequences: Sequences,
    heads: int,
    dropout_probability: float = 0.0,
    site: int = 0,
    training: bool = True,
) -> Tensor:
    """Return the multi-head scaled dot-product attention of each of the `sequences` to itself: [N, C].

    Query, key and value of the rows, each [N, C], lie side by side in `joined` [N, 3C]. Dropout of the probabilities
    draws at the coordinates of the rows.
    """
    probability = dropout_probability if training else 0.0
    return Attention.apply(joined, sequences=sequences, heads=heads, probability=probability, site=site)


def cross_entropy(
    logits: Tensor,
    labels: Array,
    ignore_index: int = IGNORE_INDEX,
    reduction: Literal["mean", "sum", "none"] = "mean",
    vocabulary: int | None = None,
) -> Tensor:
    """Return the cross-entropy of logits [N, V] at labels [N] (integers in [0, V), or `ignore_index`), in nats.

    "mean" divides by the number of labels other than `ignore_index` and is 0 if there are none; "none" returns the
    losses [N]. With `vocabulary`, logits are [N, W] and only the first V columns count; the others get a gradient of 0.
    """
    losses = CrossEntropy.apply(logits, labels=labels, ignore_index=ignore_index, vocabulary=vocabulary)
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    return total * (1.0 / max(1, int(np.count_nonzero(labels != ignore_index))))
