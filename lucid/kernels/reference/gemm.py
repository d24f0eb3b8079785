"""Products of linear layers."""

import ml_dtypes

from lucid.backend import Array, array_module
from lucid.kernels.reference.rows import as_rows
from lucid.kernels.targets import Target, put


def product_input(x: Array) -> Array:
    return x


def linear(x: Array, weight: Array, bias: Array | None, out: Array | None = None) -> Array:
    y = array_module(x).matmul(as_rows(x), weight.T)
    if bias is not None:
        y += bias
    if out is None:
        return y.reshape(*x.shape[:-1], len(weight))
    out[...] = y
    return out


def linear_input_gradient(
    gradient: Array, weight: Array, addend: Array | None = None, out: Array | None = None
) -> Array:
    y = array_module(gradient).matmul(as_rows(gradient), weight).reshape(*gradient.shape[:-1], weight.shape[1])
    if addend is not None:
        y += addend
    if out is None:
        return y
    out[...] = y
    return out


def linear_weight_gradient(gradient: Array, x: Array, by_weight: Target, by_bias: Target | None = None) -> None:
    xp, (out, accumulate) = array_module(gradient), by_weight
    if accumulate:
        out += xp.matmul(as_rows(gradient).T, as_rows(x))
    else:
        xp.matmul(as_rows(gradient).T, as_rows(x), out=out)
    if by_bias is not None:
        linear_bias_gradient(gradient, by_bias)


def linear_bias_gradient(gradient: Array, by_bias: Target) -> None:
    put(as_rows(gradient).sum(axis=0), by_bias)


def round_to_bfloat16(x: Array, out: Array | None = None) -> Array:
    if out is None:
        return x.astype(ml_dtypes.bfloat16)
    out[...] = x
    return out
