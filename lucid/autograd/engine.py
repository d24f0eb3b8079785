"""Backward: walk the recorded graph from the loss to the leaves, iteratively, newest function first.

A function runs backward when all uses of its output have contributed to its gradient. A leaf (a parameter) is *ready*
when its last use has contributed; it then calls the hooks of `Tensor.add_ready_hook`, which start the reduction over
ranks in data-parallel training.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable
from contextvars import ContextVar

from lucid.autograd.function import Deferred, Function, Gradient
from lucid.autograd.recomputation import Recomputed
from lucid.autograd.tensor import Tensor
from lucid.backend import Array
from lucid.kernels.targets import Target

_callbacks: ContextVar[list[Callable[[], None]] | None] = ContextVar("callbacks", default=None)


def after_backward(callback: Callable[[], None]) -> None:
    """Call `callback` once, when the current backward pass has reached every leaf.

    Raises `RuntimeError` if no backward pass is running.
    """
    callbacks = _callbacks.get()
    if callbacks is None:
        raise RuntimeError("after_backward was called while no backward pass is running")
    callbacks.append(callback)


def backward(root: Tensor, gradient: Array) -> None:
    """Add the gradient of `root`, weighted by `gradient` (of the same shape), to every leaf behind it."""
    token = _callbacks.set([])
    try:
        _walk(root.origin, gradient)
        for callback in _callbacks.get() or ():
            callback()
    finally:
        _callbacks.reset(token)


def _walk(root: Function | Tensor, gradient: Array) -> None:
    uses: defaultdict[Function | Tensor, int] = defaultdict(int)
    sums: defaultdict[Function, _Sum] = defaultdict(_Sum)
    ready: list[tuple[int, Function]] = []

    def deliver(origin: Function | Tensor, contribution: Gradient) -> None:
        if isinstance(origin, Tensor):
            origin.accumulate(contribution)
        else:
            sums[origin].add(contribution)
        uses[origin] -= 1
        if uses[origin] > 0:
            return
        if isinstance(origin, Tensor):
            origin.run_ready_hooks()
        else:
            heapq.heappush(ready, (-origin.sequence, origin))

    def pass_through(function: Function, total: Array) -> None:
        contributions = function.backward(total)
        if not isinstance(contributions, tuple) or isinstance(contributions, Deferred | Target):
            contributions = (contributions,)
        origins = function.origins
        function.release()
        for origin, contribution in zip(origins, contributions, strict=True):
            if origin is not None:
                deliver(origin, contribution)

    def replace_by_functions(function: Recomputed, total: Array) -> None:
        """Replace `function` in the graph by the functions that it stands for."""
        last = function.run_again()
        _count_uses(last, uses)
        for origin in _origins(function):
            uses[origin] -= 1
            if uses[origin] == 0:
                raise RuntimeError("recompute: the function led to other tensors when it was run again")
        function.release()
        deliver(last, total)

    _count_uses(root, uses)
    deliver(root, gradient)
    while ready:
        _, function = heapq.heappop(ready)
        total = sums.pop(function).total()
        if isinstance(function, Recomputed):
            replace_by_functions(function, total)
        else:
            pass_through(function, total)


def _count_uses(root: Function | Tensor, uses: defaultdict[Function | Tensor, int]) -> None:
    """Count in `uses` the contributions that `root`, and everything behind it that is not counted yet, will receive."""
    uses[root] += 1
    stack = [root]
    while stack:
        item = stack.pop()
        if isinstance(item, Tensor):
            continue
        for origin in _origins(item):
            if uses[origin] == 0:
                stack.append(origin)
            uses[origin] += 1


def _origins(function: Function) -> list[Function | Tensor]:
    return [origin for origin in function.origins if origin is not None]


class _Sum:
    """The gradient of one function's output while its contributions arrive.

    The first contribution is borrowed, because its maker may hold it too. The first addition creates an array of our
    own, and later ones add in place. A `Deferred` adds the sum so far while it is computed.
    """

    def __init__(self) -> None:
        self._array: Array | None = None
        self._owned = False

    def add(self, contribution: Gradient) -> None:
        assert contribution is not None, "a function gave no gradient for an input that needs one"
        if isinstance(contribution, Target):
            contribution = contribution.out
        if isinstance(contribution, Deferred):
            own = self._array if self._owned else None
            out = own if own is not None and own.flags.c_contiguous else contribution.allocate()
            contribution.write(out, self._array)
            self._array, self._owned = out, True
        elif self._array is None:
            self._array = contribution
        elif self._owned:
            self._array += contribution
        else:
            self._array = self._array + contribution
            self._owned = True

    def total(self) -> Array:
        assert self._array is not None
        return self._array
