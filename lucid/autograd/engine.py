"""Backward: walk the recorded graph from the loss to the leaves, iteratively, newest function first.

A function is walked when all uses of its output have contributed; a leaf (a parameter) is *ready* at the moment its
last use has, and tells those who asked with `Tensor.add_ready_hook`. That is what data-parallel training listens to.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable
from contextvars import ContextVar

from lucid.autograd.function import Deferred, Function, Gradient, Origin
from lucid.autograd.tensor import Tensor
from lucid.backend import Array, array_module

_callbacks: ContextVar[list[Callable[[], None]] | None] = ContextVar("callbacks", default=None)


def after_backward(callback: Callable[[], None]) -> None:
    """Call `callback` once when the backward pass that is running now has reached every leaf."""
    callbacks = _callbacks.get()
    if callbacks is None:
        raise RuntimeError("after_backward was called while no backward pass is running")
    callbacks.append(callback)


def backward(root: Tensor, gradient: Array) -> None:
    """Add the gradient of `root`, weighted by `gradient` (of its shape), to every leaf behind it."""
    token = _callbacks.set([])
    try:
        _walk(root.origin, gradient)
        for callback in _callbacks.get() or ():
            callback()
    finally:
        _callbacks.reset(token)


def _walk(root: Origin, gradient: Array) -> None:
    uses = _count_uses(root)
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

    if root is not None:
        deliver(root, gradient)
    while ready:
        _, function = heapq.heappop(ready)
        contributions = function.backward(sums.pop(function).total())
        if not isinstance(contributions, tuple) or isinstance(contributions, Deferred):
            contributions = (contributions,)
        origins = function.origins
        function.release()
        for origin, contribution in zip(origins, contributions, strict=True):
            if origin is not None:
                deliver(origin, contribution)


def _count_uses(root: Origin) -> defaultdict[Function | Tensor, int]:
    """Return how many contributions each function and leaf behind `root` will get."""
    uses: defaultdict[Function | Tensor, int] = defaultdict(int)
    if root is None:
        return uses
    uses[root] = 1
    stack = [root]
    while stack:
        item = stack.pop()
        if isinstance(item, Tensor):
            continue
        for origin in item.origins:
            if origin is None:
                continue
            if uses[origin] == 0:
                stack.append(origin)
            uses[origin] += 1
    return uses


class _Sum:
    """The gradient of one function's output as it comes together.

    The first contribution is borrowed, since whoever made it may hold it too; the first addition makes an array that
    is ours, later ones add in place.
    """

    def __init__(self) -> None:
        self._array: Array | None = None
        self._owned = False

    def add(self, contribution: Gradient) -> None:
        assert contribution is not None, "a function gave no gradient for an input that needs one"
        if isinstance(contribution, Deferred):
            if self._array is None or not self._owned:
                fresh = array_module(contribution.like).empty_like(contribution.like)
                contribution.write(fresh, False)
                self._array = fresh if self._array is None else fresh + self._array
                self._owned = True
            else:
                contribution.write(self._array, True)
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
