"""Products of linear layers and attention: `kernels/products.py` computes them, this file rounds their inputs.

Weights, activations and gradients stay float32 arrays. A product of attention itself rounds its result for the next.
"""

import numpy as np
from numba import types

from lucid.backend import Array
from lucid.kernels import onednn, products, threads
from lucid.kernels.cpu.arrays import plain
from lucid.kernels.cpu.compiling import kernel, read, write
from lucid.kernels.cpu.mathematics import bfloat16_of
from lucid.kernels.cpu.sums import linear_bias_gradient
from lucid.kernels.targets import Target


@kernel(read(1), write(1, types.uint16))
def _round(x: Array, y: Array) -> None:
    for element in range(x.shape[0]):
        y[element] = bfloat16_of(x[element])


def product_input(x: Array) -> Array:
    return x if x.dtype == onednn.BFLOAT16 or not products.rounds() else round_to_bfloat16(x)


def round_to_bfloat16(x: Array, out: Array | None = None) -> Array:
    y = np.empty(x.shape, onednn.BFLOAT16) if out is None else out
    source, target = plain(x).reshape(-1), y.reshape(-1).view(np.uint16)
    threads.split(x.size, x.size, lambda part: _round(source[part], target[part]))
    return y


def multiply_here(left: Array, right: Array, out: Array) -> None:
    """Write left [G, M, K] times right [G, K, N], each a `product_input`, to out [G, M, N] on this thread."""
    if onednn.is_installed():
        onednn.multiply(left, right, out)
    else:
        np.matmul(left, right, out=out)


def linear(x: Array, weight: Array, bias: Array | None, out: Array | None = None) -> Array:
    return products.linear(product_input(x), product_input(weight), bias if bias is None else plain(bias), out)


def linear_input_gradient(
    gradient: Array, weight: Array, addend: Array | None = None, out: Array | None = None
) -> Array:
    return products.linear_input_gradient(product_input(gradient), product_input(weight), addend, out)


def linear_weight_gradient(gradient: Array, x: Array, by_weight: Target, by_bias: Target | None = None) -> None:
    products.linear_weight_gradient(product_input(gradient), product_input(x), by_weight)
    if by_bias is not None:
        linear_bias_gradient(gradient, by_bias)
