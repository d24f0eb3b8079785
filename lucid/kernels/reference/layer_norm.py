"""Layer normalisation, alone or fused with the bias, the dropout and the residual sum before it."""

from lucid.backend import Array, array_module
from lucid.kernels.arguments import Dropout
from lucid.kernels.reference.elementwise import dropout as drop_out
from lucid.kernels.reference.rows import as_rows
from lucid.kernels.targets import Target, put


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    xp = array_module(x)
    rows = as_rows(x)
    mean = rows.mean(axis=1, keepdims=True)
    y = rows - mean
    reciprocal = 1 / xp.sqrt((y * y).mean(axis=1, keepdims=True) + epsilon)
    y *= reciprocal
    y *= weight
    y += bias
    return y.reshape(x.shape), mean, reciprocal


def layer_norm_gradient(
    gradient: Array,
    x: Array,
    weight: Array,
    mean: Array,
    reciprocal: Array,
    by_weight: Target | None,
    by_bias: Target | None,
) -> Array:
    rows = as_rows(gradient)
    normalised = (as_rows(x) - mean) * reciprocal
    put((rows * normalised).sum(axis=0), by_weight)
    put(rows.sum(axis=0), by_bias)
    scaled = rows * weight
    along = (scaled * normalised).mean(axis=1, keepdims=True)
    scaled -= scaled.mean(axis=1, keepdims=True)
    scaled -= normalised * along
    scaled *= reciprocal
    return scaled.reshape(x.shape)


def dropout_add_layer_norm(
    x: Array, bias: Array, residual: Array, weight: Array, shift: Array, epsilon: float, dropout: Dropout
) -> tuple[Array, Array, Array, Array]:
    total = drop_out(x + bias, dropout)
    total += residual
    y, mean, reciprocal = layer_norm(total, weight, shift, epsilon)
    return y, total, mean, reciprocal


def dropout_add_layer_norm_gradient(
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
    by_total = layer_norm_gradient(gradient, total, weight, mean, reciprocal, by_weight, by_shift)
    by_x = drop_out(by_total, dropout)
    put(as_rows(by_x).sum(axis=0), by_bias)
    return by_x, by_total
