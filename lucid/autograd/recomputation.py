"""Recomputation: what a part of a model computes is not kept for backward, but made again by it (Chen et al., 2016).

In the graph one node, a `Recomputed`, stands for all the functions of the part. Backward, when it comes to the node,
runs the part again and walks the functions recorded then. They lead to the same tensors and parameters, so gradients,
the order of their sums, and ready hooks are those of a graph that was kept.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from lucid import random
from lucid.autograd.function import Function, Origin, enable_grad
from lucid.autograd.tensor import Tensor


class Recomputed(Function):
    """Stands for the functions of a part; its origins are the functions and leaves that these led to."""

    def __init__(self, run: Callable[[], Tensor]) -> None:
        super().__init__(needs=())
        self.save(run, random.state())

    def run_again(self) -> Function:
        """Run the part as it was run before, and return the last function recorded."""
        run, state = self.saved
        with enable_grad(), random.using(state):
            last = run().origin
        assert isinstance(last, Function)
        return last


def recompute(function: Callable[..., Tensor], *inputs: Any, **options: Any) -> Tensor:
    """Return `function(*inputs, **options)`, and keep for backward no more than `inputs`.

    Backward calls `function` once more, with the same random numbers. It has to compute the same again: leave the
    values and modes that it reads as they are until then.
    """
    # Made first: what the part records has later sequence numbers, what it leads to has earlier ones.
    node = Recomputed(partial(function, *inputs, **options))
    result = function(*inputs, **options)
    last = result.origin
    if not isinstance(last, Function) or last.sequence < node.sequence:
        return result
    node.origins = _origins_before(node.sequence, last)
    return Tensor(result.data, requires_grad=True, function=node)


def _origins_before(sequence: int, last: Function) -> tuple[Origin, ...]:
    """Return the leaves behind `last`, and the functions with earlier numbers, without going beyond these."""
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
