"""How fast products of linear layers can be here: the library in use, at a model's shapes, with this rank's threads."""

import time
from collections.abc import Callable, Iterable

import numpy as np

from lucid import kernels
from lucid.backend import CPU, Array, array_module, device_of, to_host
from lucid.kernels.targets import Target

# More rows than these are hardly faster a row, and would take long, or much memory, on the CPU and on a GPU.
_MOST_ROWS, _MOST_ROWS_ON_GPU = 512, 16_384
# Products of which only the last is waited for: it is long compared with the products of a GPU.
_CALLS, _CALLS_ON_GPU = 1, 20
# The first also warms up: the library prepares its product, and memory is fetched.
_REPETITIONS = 3


def product_rate(shapes: Iterable[tuple[int, int]], rows: int, like: Array) -> float:
    """Return FLOP/s of the forward product, and of those of both gradients, with weights of `shapes` (O, I), together.

    Each product counts with its shortest time. Arrays are of the dtype and on the device of `like`, but for the
    gradients of weights, which are not bfloat16; operands are rounded beforehand, as `kernels.set_precision` says.
    Takes as long as training does for 3 x 512 rows at most; on a GPU, for a million.
    """
    most, calls = (_MOST_ROWS, _CALLS) if device_of(like) == CPU else (_MOST_ROWS_ON_GPU, _CALLS_ON_GPU)
    rows, flops, seconds = min(rows, most), 0, 0.0
    for outputs, inputs in shapes:
        products = _products(rows, outputs, inputs, like)
        seconds += sum(_shortest(product, calls) for product in products)
        flops += len(products) * 2 * rows * outputs * inputs
    return flops / seconds


def _products(rows: int, outputs: int, inputs: int, like: Array) -> list[Callable[[], Array]]:
    """Return the three products of a linear layer, each of which returns its result."""
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
    # Not zeros, by which some processors run cooler and faster.
    numbers = array_module(like).linspace(-1, 1, rows * columns, dtype=np.promote_types(like.dtype, np.float32))
    return numbers.astype(like.dtype, copy=False).reshape(rows, columns)


def _shortest(product: Callable[[], Array], calls: int) -> float:
    """Return the seconds of a product, the fewest that some in a row took on average."""
    times = []
    for _ in range(_REPETITIONS):
        started = time.perf_counter()
        for _ in range(calls):
            result = product()
        to_host(result[:1])  # waits for a GPU
        times.append((time.perf_counter() - started) / calls)
    return min(times)
