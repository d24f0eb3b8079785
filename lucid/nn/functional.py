"""The fused operations that BERT is made of, differentiable: each one is a kernel of the catalogue and its backward.

Shapes: B batch, T length, C width, V vocabulary, N rows. Arguments are tensors; ids, labels and masks are arrays.
"""

from typing import Any, Literal

import numpy as np

from lucid import kernels
from lucid.autograd import Deferred, Function, Tensor
from lucid.backend import Array, array_module
from lucid.kernels import Activation
from lucid.random import Stream, current_coordinates


class Linear(Function):
    def forward(self, x: Array, weight: Array, bias: Array | None) -> Array:
        kernel = kernels.of(x)
        operands = kernel.operand(x), kernel.operand(weight)
        self.save(*operands, weight)
        return kernel.linear(*operands, bias)

    def backward(self, gradient: Array) -> Any:
        x, factor, weight = self.saved
        kernel = kernels.of(gradient)
        rounded = kernel.operand(gradient)
        return (
            kernel.linear_input_gradient(rounded, factor) if self.needs[0] else None,
            Deferred(weight, lambda out, accumulate: kernel.linear_weight_gradient(rounded, x, out, accumulate)),
            kernel.linear_bias_gradient(gradient) if self.needs[2] else None,
        )


class ApplyActivation(Function):
    def forward(self, x: Array, bias: Array | None, *, kind: Activation) -> Array:
        self.save(x, bias, kind)
        return kernels.of(x).activation(x, bias, kind)

    def backward(self, gradient: Array) -> Any:
        return kernels.of(gradient).activation_gradient(gradient, *self.saved)


class LayerNorm(Function):
    def forward(self, x: Array, weight: Array, bias: Array, *, epsilon: float) -> Array:
        y, mean, reciprocal = kernels.of(x).layer_norm(x, weight, bias, epsilon)
        self.save(x, weight, mean, reciprocal)
        return y

    def backward(self, gradient: Array) -> Any:
        x, weight, mean, reciprocal = self.saved
        return kernels.of(x).layer_norm_gradient(gradient, x, weight, mean, reciprocal)


class Dropout(Function):
    def forward(self, x: Array, *, probability: float, stream: int) -> Array:
        coordinates = current_coordinates(len(x))
        self.save(probability, stream, coordinates)
        return kernels.of(x).dropout(x, probability, stream, coordinates)

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
        stream: int,
    ) -> Array:
        drawn = probability, stream, current_coordinates(len(x)) if probability > 0 else None
        kernel = kernels.of(x).dropout_add_layer_norm
        y, total, mean, reciprocal = kernel(x, bias, residual, weight, shift, epsilon, *drawn)
        self.save(total, weight, mean, reciprocal, *drawn)
        return y

    def backward(self, gradient: Array) -> Any:
        return kernels.of(gradient).dropout_add_layer_norm_gradient(gradient, *self.saved)


class Embedding(Function):
    def forward(self, table: Array, *, ids: Array, padding_id: int | None) -> Array:
        self.save(table, ids, padding_id)
        return array_module(table).take(table, ids, axis=0)

    def backward(self, gradient: Array) -> Any:
        table, ids, padding_id = self.saved
        write = kernels.of(table).embedding_gradient
        return Deferred(table, lambda out, accumulate: write(gradient, ids, out, accumulate, padding_id))


class Attention(Function):
    def forward(
        self, query: Array, key: Array, value: Array, *, mask: Array | None, heads: int, probability: float, stream: int
    ) -> Array:
        coordinates = current_coordinates(len(query)) if probability > 0 else None
        settings = heads, probability, stream, coordinates
        output, probabilities = kernels.of(query).attention(query, key, value, mask, *settings)
        self.save(query, key, value, probabilities, *settings)
        return output

    def backward(self, gradient: Array) -> Any:
        return kernels.of(gradient).attention_gradient(gradient, *self.saved)


class CrossEntropy(Function):
    def forward(self, logits: Array, *, labels: Array, ignore_index: int) -> Array:
        losses, log_sum = kernels.of(logits).cross_entropy(logits, labels, ignore_index)
        self.save(logits, labels, log_sum, ignore_index)
        return losses

    def backward(self, gradient: Array) -> Any:
        return kernels.of(gradient).cross_entropy_gradient(gradient, *self.saved)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x [..., I] times weight [O, I] transposed, plus bias [O]."""
    return Linear.apply(x, weight, bias)


def activation(x: Tensor, kind: Activation, bias: Tensor | None = None) -> Tensor:
    """Apply "gelu" (erf form), "gelu_new" (tanh form) or "relu" to each element of x [..., C], plus bias [C]."""
    return ApplyActivation.apply(x, bias, kind=kind)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float = 1e-12) -> Tensor:
    """Normalise x [..., C] over its last axis, then scale by weight [C] and shift by bias [C]."""
    return LayerNorm.apply(x, weight, bias, epsilon=epsilon)


def dropout(x: Tensor, probability: float, site: int = 0, training: bool = True) -> Tensor:
    """Zero elements of x [B, ...] with `probability` and scale up the rest, in training only.

    `site` numbers the places of a model, so that no two draw the same mask. What is drawn depends on the coordinates
    in force (`lucid.random.at`), or else on `lucid.manual_seed` and the number of calls.
    """
    if not training or probability == 0:
        return x
    return Dropout.apply(x, probability=probability, stream=Stream.DROPOUT + site)


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

    x and residual are [B, ..., C], bias, weight and shift [C]. Dropout is as in `dropout`.
    """
    probability = dropout_probability if training else 0.0
    return DropoutAddLayerNorm.apply(
        x, bias, residual, weight, shift, epsilon=epsilon, probability=probability, stream=Stream.DROPOUT + site
    )


def embedding(ids: Array, table: Tensor, padding_id: int | None = None) -> Tensor:
    """Return the rows of table [V, C] at ids [...] (integers in [0, V), checked by the caller): [..., C].

    The row of `padding_id` gets no gradient from here.
    """
    return Embedding.apply(table, ids=ids, padding_id=padding_id)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    mask: Array | None = None,
    dropout_probability: float = 0.0,
    site: int = 0,
    training: bool = True,
) -> Tensor:
    """Multi-head scaled dot-product attention of query, key, value [B, T, C]; returns [B, T, C].

    `mask` [B, T] is True where a key may be attended to. Dropout on the probabilities is as in `dropout`.
    """
    probability = dropout_probability if training else 0.0
    return Attention.apply(
        query, key, value, mask=mask, heads=heads, probability=probability, stream=Stream.DROPOUT + site
    )


def cross_entropy(
    logits: Tensor, labels: Array, ignore_index: int = -100, reduction: Literal["mean", "sum", "none"] = "mean"
) -> Tensor:
    """Return the cross-entropy of logits [N, V] at labels [N] (integers in [0, V), or `ignore_index`), in nats.

    "mean" divides by the number of labels that count (0 if none does), "none" returns the losses [N].
    """
    losses = CrossEntropy.apply(logits, labels=labels, ignore_index=ignore_index)
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    return total * (1.0 / max(1, int(np.count_nonzero(labels != ignore_index))))
