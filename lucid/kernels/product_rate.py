"""How fast products of linear layers can be here: the library in use, at a model's shapes, with this rank's threads."""

import time
from collections.abc import Callable, Iterable

from lucid import kernels
from lucid.backend import Array, array_module, to_host

# More rows than these are hardly faster a row, and would take long.
_MOST_ROWS = 512
# The first also warms up: the library prepares its product, and memory is fetched.
_REPETITIONS = 3


def product_rate(shapes: Iterable[tuple[int, int]], rows: int, like: Array) -> float:
    """Return FLOP/s of the forward product, and of those of both gradients, with weights of `shapes` (O, I), together.

    Each product counts with its shortest time. Arrays are of the dtype and on the device of `like`; operands are
    rounded beforehand, as `kernels.set_precision` says. Takes as long as training does for 3 x 512 rows at most.
    """
    flops, seconds = 0, 0.0
    for outputs, inputs in shapes:
        products = _products(min(rows, _MOST_ROWS), outputs, inputs, like)
        seconds += sum(_shortest(product) for product in products)
        flops += len(products) * 2 * min(rows, _MOST_ROWS) * outputs * inputs
    return flops / seconds


def _products(rows: int, outputs: int, inputs: int, like: Array) -> list[Callable[[], Array]]:
    """Return the three products of a linear layer, each of which returns its result."""
    kernel = kernels.of(like)
    out = _numbers(outputs, inputs, like)
    x, gradient, weight = (
        kernel.operand(_numbers(*shape, like)) for shape in ((rows, inputs), (rows, outputs), (outputs, inputs))
    )

    def weight_gradient() -> Array:
        kernel.linear_weight_gradient(gradient, x, out, False)
        return out

    return [
        lambda: kernel.linear(x, weight, None),
        lambda: kernel.linear_input_gradient(gradient, weight),
        weight_gradient,
    ]


def _numbers(rows: int, columns: int, like: Array) -> Array:
    # Not zeros, by which some processors run cooler and faster.
    return array_module(like).linspace(-1, 1, rows * columns, dtype=like.dtype).reshape(rows, columns)


def _shortest(product: Callable[[], Array]) -> float:
    """Return the seconds of the fastest of a few calls."""
    times = []
    for _ in range(_REPETITIONS):
        started = time.perf_counter()
        to_host(product()[:1])  # waits for a GPU
        times.append(time.perf_counter() - started)
    return min(times)
