"""One differentiable operation: a forward and a backward over arrays.

A `Function` subclass is a pair of short methods. `forward` takes arrays and returns one array; it stores the values for
backward with `save`. `backward` takes the gradient of the output and returns one gradient for each input, or `None`
where `needs` is false. This file records the graph, `engine` walks it, and the formulas are elsewhere.

A gradient need not be a new array, which would then have to be copied or added. Backward may write it to a `target`,
as kernels do that compute gradients of several parameters at once, or return it as a `Deferred`.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias, Union

from lucid.autograd import tensor as tensors
from lucid.backend import Array, array_module
from lucid.kernels.targets import Target

_recording: ContextVar[bool] = ContextVar("recording", default=True)
_sequence = itertools.count()


class Deferred(NamedTuple):
    """A gradient that is not computed yet, so that it can be written or added directly to its destination.

    `allocate()` returns an array for it. `write(out, addend)` fills such an array, in C order, with the gradient plus
    `addend`: None, `out` itself, or another array of the same shape, which does not change.
    """

    allocate: Callable[[], Array]
    write: Callable[[Array, Array | None], object]


Gradient: TypeAlias = Array | Deferred | Target | None
# The end of an edge of the graph: the function that made an input, a leaf that wants a gradient, or None.
Origin: TypeAlias = Union["Function", "tensors.Tensor", None]


class Function:
    """Base of all operations. `Subclass.apply(*inputs, **settings)` runs and records one."""

    def __init__(self, needs: tuple[bool, ...]) -> None:
        self.needs = needs
        self.sequence = next(_sequence)
        self.origins: tuple[Origin, ...] = ()
        self._saved: tuple[Any, ...] | None = None

    @classmethod
    def apply(cls, *inputs: Any, **settings: Any) -> "tensors.Tensor":
        """Run forward on `inputs`: tensors, or arrays and numbers, which get no gradient."""
        recording = _recording.get()
        function = cls(tuple(recording and _requires_grad(item) for item in inputs))
        arrays = [cls.values_of(item) if isinstance(item, tensors.Tensor) else item for item in inputs]
        data = function.forward(*arrays, **settings)
        if not any(function.needs):
            return tensors.Tensor(data)
        function.origins = tuple(
            item.origin if needed else None for item, needed in zip(inputs, function.needs, strict=True)
        )
        return tensors.Tensor(data, requires_grad=True, function=function)

    @staticmethod
    def values_of(tensor: "tensors.Tensor") -> Array:
        """Return the array that `forward` receives for an input tensor."""
        return tensor.compute_copy

    def forward(self, *inputs: Any, **settings: Any) -> Array:
        raise NotImplementedError

    def backward(self, gradient: Array) -> Gradient | tuple[Gradient, ...]:
        raise NotImplementedError

    def save(self, *values: Any) -> None:
        """Store `values` for backward, which unpacks `self.saved`."""
        self._saved = values

    @property
    def saved(self) -> tuple[Any, ...]:
        if self._saved is None:
            raise RuntimeError(
                "this graph was already walked by backward and its activations are gone: run forward again"
            )
        return self._saved

    def target(self, number: int, like: Array) -> Target | None:
        """Return a target for the gradient by input `number`, which backward fills and returns; None if not needed.

        For a leaf the target is its gradient buffer; otherwise it is a new array, in C order, with the shape and dtype
        of `like`. A leaf that is also an earlier input gets a new array here, because kernels may write both at once.
        """
        if not self.needs[number]:
            return None
        origin = self.origins[number]
        if isinstance(origin, tensors.Tensor) and all(origin is not other for other in self.origins[:number]):
            return origin.gradient_target(like.shape)
        return Target(array_module(like).empty_like(like, order="C"), accumulate=False)

    def release(self) -> None:
        """Drop the saved arrays and the graph behind this function, so that memory shrinks as backward proceeds."""
        self._saved = None
        self.origins = ()


def _requires_grad(item: Any) -> bool:
    return isinstance(item, tensors.Tensor) and item.requires_grad


@contextmanager
def no_grad() -> Iterator[None]:
    """Record nothing inside the block. Also usable as a decorator."""
    with _record(False):
        yield


@contextmanager
def enable_grad() -> Iterator[None]:
    """Record inside the block, even within `no_grad`."""
    with _record(True):
        yield


@contextmanager
def _record(recording: bool) -> Iterator[None]:
    token = _recording.set(recording)
    try:
        yield
    finally:
        _recording.reset(token)
