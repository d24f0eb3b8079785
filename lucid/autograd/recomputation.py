"""Recomputation: backward computes the activations of a part of a model again, instead of storing them.

One node of the graph, a `Recomputed`, stands for all functions of the part. When backward reaches the node, it runs the
part again and walks the newly recorded functions instead. They lead to the same tensors and parameters, so gradients,
the order of their sums, and ready hooks are the same as without recomputation. Chen et al., 2016.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from lucid import random
from lucid.autograd.function import Function, Origin, enable_grad
from lucid.autograd.tensor import Tensor


class Recomputed(Function):
    """The node that stands for the functions of a part; its origins are the functions and leaves behind the part."""

    def __init__(self, run: Callable[[], Tensor]) -> None:
        super().__init__(needs=())
        self.save(run, random.state())

    def run_again(self) -> Function:
        """Run the part again with the same random numbers, and return the last function that it records."""
        run, state = self.saved
        with enable_grad(), random.using(state):
            last = run().origin
        assert isinstance(last, Function)
        return last


def recompute(function: Callable[..., Tensor], *inputs: Any, **options: Any) -> Tensor:
    """Return `function(*inputs, **options)`, storing only `inputs` for backward.

    Backward calls `function` once more, with the same random numbers. The second call must compute the same result: do
    not change the values that `function` reads before then.
    """
    # Created first: functions inside the part have later sequence numbers, functions behind it have earlier ones.
    node = Recomputed(partial(function, *inputs, **options))
    result = function(*inputs, **options)
    last = result.origin
    if not isinstance(last, Function) or last.sequence < node.sequence:
        return result
    node.origins = _origins_before(node.sequence, last)
    return Tensor(result.data, requires_grad=True, function=node)


def _origins_before(sequence: int, last: Function) -> tuple[Origin, ...]:
    """Return the leaves and the functions with earlier numbers that the functions of the part lead to."""
    found: list[Origin] = []
    seen: set[Origin] = {None, last}
    stack: list[Origin] = [last]
    while stack:
        item = stack.pop()
        if not isinstance(item, Function) or item.sequence < sequence:
            found.append(item)
            continue
        following = set(item.origins) - seen
        seen |= following
        stack += following
    return tuple(found)
