"""The rate at which this machine computes products of linear layers, with a model's shapes and this rank's threads."""

import time
from collections.abc import Callable, Iterable

import numpy as np

from lucid import kernels
from lucid.backend import CPU, Array, array_module, device_of, to_host
from lucid.kernels.targets import Target

# More rows are hardly faster per row, and would take too long on a CPU, or too much memory on a GPU.
_MOST_ROWS, _MOST_ROWS_ON_GPU = 512, 16_384
# Products between two waits: on a GPU a wait takes long compared with a product.
_CALLS, _CALLS_ON_GPU = 1, 20
# The first repetition also warms up: the library prepares its product, and memory is allocated.
_REPETITIONS = 3


def product_rate(shapes: Iterable[tuple[int, int]], rows: int, like: Array) -> float:
    """Return the FLOP/s of the forward product and both gradients' products together, for weights of `shapes` (O, I).

    The shortest time of each product counts. Arrays have the dtype and device of `like`, except that gradients of
    weights are never bfloat16; inputs are rounded beforehand. The measurement takes as long as training on at most
    3 x 512 rows, or on a million on a GPU.
    """
    most, calls = (_MOST_ROWS, _CALLS) if device_of(like) == CPU else (_MOST_ROWS_ON_GPU, _CALLS_ON_GPU)
    rows, flops, seconds = min(rows, most), 0, 0.0
    for outputs, inputs in shapes:
        products = _products(rows, outputs, inputs, like)
        seconds += sum(_shortest(product, calls) for product in products)
        flops += len(products) * 2 * rows * outputs * inputs
    return flops / seconds


def _products(rows: int, outputs: int, inputs: int, like: Array) -> list[Callable[[], Array]]:
    """Return the three products of a linear layer as functions that return their results."""
    kernel = kernels.products_of(like)
    out = array_module(like).empty((outputs, inputs), np.promote_types(like.dtype, np.float32))
    x, gradient, weight = (
        kernel.product_input(_numbers(*shape, like)) for shape in ((rows, inputs), (rows, outputs), (outputs, inputs))
    )

    def weight_gradient() -> Array:
        kernel.linear_weight_gradient(gradient, x, Target(out, False))
        return out

    return [
        lambda: kernel.linear(x, weight, None),
        lambda: kernel.linear_input_gradient(gradient, weight),
        weight_gradient,
    ]


def _numbers(rows: int, columns: int, like: Array) -> Array:
    # Not zeros, with which some processors run cooler and therefore faster.
    numbers = array_module(like).linspace(-1, 1, rows * columns, dtype=np.promote_types(like.dtype, np.float32))
    return numbers.astype(like.dtype, copy=False).reshape(rows, columns)


def _shortest(product: Callable[[], Array], calls: int) -> float:
    """Return the seconds of a product: the least average over `calls` products in a row."""
    times = []
    for _ in range(_REPETITIONS):
        started = time.perf_counter()
        for _ in range(calls):
            result = product()
        to_host(result[:1])  # waits for a GPU
        times.append((time.perf_counter() - started) / calls)
    return min(times)
