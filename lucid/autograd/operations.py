"""The differentiable operations behind `Tensor`'s methods. `nn.functional` has the fused operations of BERT.

Each `Function` is a pair of methods, forward and backward. Inputs are tensors, arrays (NumPy or CuPy) or
numbers, and broadcast as in NumPy.
"""

from functools import partial
from typing import Any

import numpy as np

from lucid.autograd.function import Deferred, Function
from lucid.backend import Array, array_module

Axes = int | tuple[int, ...] | None


def _unbroadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum `gradient` over the axes along which an input of `shape` was broadcast."""
    extra = gradient.ndim - len(shape)
    stretched = tuple(extra + axis for axis, size in enumerate(shape) if size == 1)
    gradient = gradient.sum(axis=(*range(extra), *stretched), keepdims=True) if extra or stretched else gradient
    return gradient.reshape(shape)


class Add(Function):
    def forward(self, a: Any, b: Any) -> Array:
        self.save(np.shape(a), np.shape(b))
        return a + b

    def backward(self, gradient: Array) -> Any:
        a, b = self.saved
        return (
            _unbroadcast(gradient, a) if self.needs[0] else None,
            _unbroadcast(gradient, b) if self.needs[1] else None,
        )


class Subtract(Function):
    def forward(self, a: Any, b: Any) -> Array:
        self.save(np.shape(a), np.shape(b))
        return a - b

    def backward(self, gradient: Array) -> Any:
        a, b = self.saved
        return (
            _unbroadcast(gradient, a) if self.needs[0] else None,
            _unbroadcast(-gradient, b) if self.needs[1] else None,
        )


class Multiply(Function):
    def forward(self, a: Any, b: Any) -> Array:
        self.save(a, b)
        return a * b

    def backward(self, gradient: Array) -> Any:
        a, b = self.saved
        return (
            _unbroadcast(gradient * b, a.shape) if self.needs[0] else None,
            _unbroadcast(gradient * a, b.shape) if self.needs[1] else None,
        )


class Divide(Function):
    def forward(self, a: Any, b: Any) -> Array:
        self.save(a, b)
        return a / b

    def backward(self, gradient: Array) -> Any:
        a, b = self.saved
        return (
            _unbroadcast(gradient / b, a.shape) if self.needs[0] else None,
            _unbroadcast(-gradient * a / (b * b), b.shape) if self.needs[1] else None,
        )


class Power(Function):
    """A power with a constant exponent."""

    def forward(self, x: Array, exponent: float) -> Array:
        self.save(x, exponent)
        return x**exponent

    def backward(self, gradient: Array) -> Any:
        x, exponent = self.saved
        if exponent == 0:  # x ** -1 is infinite at 0
            return array_module(x).zeros_like(x), None
        return gradient * (exponent * x ** (exponent - 1)), None


class Exp(Function):
    def forward(self, x: Array) -> Array:
        y = array_module(x).exp(x)
        self.save(y)
        return y

    def backward(self, gradient: Array) -> Any:
        (y,) = self.saved
        return gradient * y


class Log(Function):
    def forward(self, x: Array) -> Array:
        self.save(x)
        return array_module(x).log(x)

    def backward(self, gradient: Array) -> Any:
        (x,) = self.saved
        return gradient / x


class Tanh(Function):
    def forward(self, x: Array) -> Array:
        y = array_module(x).tanh(x)
        self.save(y)
        return y

    def backward(self, gradient: Array) -> Any:
        (y,) = self.saved
        return gradient * (1 - y * y)


class Abs(Function):
    """The absolute value; its gradient at zero is zero."""

    def forward(self, x: Array) -> Array:
        self.save(x)
        return array_module(x).abs(x)

    def backward(self, gradient: Array) -> Any:
        (x,) = self.saved
        return gradient * array_module(x).sign(x)


class MatMul(Function):
    """The matrix product of [..., M, K] and [..., K, N]; leading axes broadcast."""

    def forward(self, a: Array, b: Array) -> Array:
        if a.ndim < 2 or b.ndim < 2:
            raise ValueError(f"matmul takes two or more dimensions, not {a.shape} and {b.shape}")
        self.save(a, b)
        return array_module(a).matmul(a, b)

    def backward(self, gradient: Array) -> Any:
        a, b = self.saved
        xp = array_module(gradient)
        return (
            _unbroadcast(xp.matmul(gradient, b.swapaxes(-1, -2)), a.shape) if self.needs[0] else None,
            _unbroadcast(xp.matmul(a.swapaxes(-1, -2), gradient), b.shape) if self.needs[1] else None,
        )


class Sum(Function):
    def forward(self, x: Array, *, axis: Axes, keepdims: bool) -> Array:
        self.save(x.shape, axis, keepdims)
        return array_module(x).asarray(x.sum(axis=axis, keepdims=keepdims))

    def backward(self, gradient: Array) -> Any:
        shape, axis, keepdims = self.saved
        xp = array_module(gradient)
        if not keepdims and axis is not None:
            gradient = xp.expand_dims(gradient, axis)
        return xp.broadcast_to(gradient, shape)


class Max(Function):
    """The greatest element. Equal ones share the gradient evenly, as in PyTorch."""

    def forward(self, x: Array) -> Array:
        y = array_module(x).asarray(x.max())
        self.save(x, y)
        return y

    def backward(self, gradient: Array) -> Any:
        x, y = self.saved
        greatest = (x == y) | (x != x)  # NaN is the greatest, and equals nothing
        return gradient * (greatest / greatest.sum()).astype(x.dtype)


class TakeAlong(Function):
    """One element along an axis for each position of the others: `indices` has one element there."""

    def forward(self, x: Array, *, indices: Array, axis: int) -> Array:
        self.save(indices, axis, x.shape)
        return array_module(x).take_along_axis(x, indices, axis)

    def backward(self, gradient: Array) -> Any:
        indices, axis, shape = self.saved
        numbers = [1] * len(shape)
        numbers[axis] = -1
        taken = array_module(gradient).arange(shape[axis]).reshape(numbers) == indices
        return gradient * taken


class Concatenate(Function):
    """Arrays one behind the other along an axis."""

    def forward(self, *parts: Array, axis: int) -> Array:
        self.save([part.shape[axis] for part in parts], axis)
        return array_module(parts[0]).concatenate(parts, axis=axis)

    def backward(self, gradient: Array) -> Any:
        lengths, axis = self.saved
        return tuple(array_module(gradient).split(gradient, np.cumsum(lengths)[:-1].tolist(), axis=axis))


class Reshape(Function):
    def forward(self, x: Array, *, shape: tuple[int, ...]) -> Array:
        self.save(x.shape)
        return x.reshape(shape)

    def backward(self, gradient: Array) -> Any:
        (shape,) = self.saved
        return gradient.reshape(shape)


class Permute(Function):
    def forward(self, x: Array, *, axes: tuple[int, ...]) -> Array:
        self.save(axes)
        return x.transpose(axes)

    def backward(self, gradient: Array) -> Any:
        (axes,) = self.saved
        inverse = [0] * len(axes)
        for position, axis in enumerate(axes):
            inverse[axis] = position
        return gradient.transpose(inverse)


class Index(Function):
    """Basic and advanced indexing; an element that is taken twice gets both gradients."""

    @staticmethod
    def _is_basic(index: Any) -> bool:
        parts = index if isinstance(index, tuple) else (index,)
        return all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in parts)

    def forward(self, x: Array, *, index: Any) -> Array:
        self.save(x, index)
        return array_module(x).asarray(x[index])

    def backward(self, gradient: Array) -> Any:
        x, index = self.saved

        def write(out: Array, addend: Array | None) -> None:
            if addend is not out:
                out[...] = 0 if addend is None else addend
            if self._is_basic(index):
                out[index] += gradient
            else:
                array_module(out).add.at(out, index, gradient)

        return Deferred(partial(array_module(x).empty_like, x, order="C"), write)


class Softmax(Function):
    def forward(self, x: Array, *, axis: int) -> Array:
        xp = array_module(x)
        y = xp.exp(x - x.max(axis=axis, keepdims=True))
        y /= y.sum(axis=axis, keepdims=True)
        self.save(y, axis)
        return y

    def backward(self, gradient: Array) -> Any:
        y, axis = self.saved
        return y * (gradient - (gradient * y).sum(axis=axis, keepdims=True))
