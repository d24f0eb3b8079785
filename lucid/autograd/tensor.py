"""`Tensor`: a NumPy or CuPy array that remembers how it was computed. Its methods follow PyTorch's."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar, overload

import numpy as np

from lucid import backend
from lucid.autograd import operations
from lucid.autograd.operations import Axes
from lucid.backend import Array
from lucid.errors import no_such_name
from lucid.kernels.targets import Target, put

if TYPE_CHECKING:
    from lucid.autograd.function import Function, Gradient


class Greatest(NamedTuple):
    """What `Tensor.max` returns along an axis: the greatest elements, and their places (int64)."""

    values: "Tensor"
    indices: "Tensor"


class Tensor:
    """An n-dimensional array that may take part in differentiation.

    `data` is the array itself (NumPy or CuPy). A leaf with `requires_grad` collects its gradient in `grad`, a tensor
    of the same shape and dtype, when `backward` is called on a tensor that was computed from it.

    Operators take tensors, arrays and numbers, and broadcast as in NumPy. Methods take `axis` and `keepdims`, which are
    NumPy's names, or `dim` and `keepdim`, which are PyTorch's. `axis` together with `dim` is a `TypeError`.
    """

    # What backward, flat buffers and operations use; programs have no need of it.
    _internal = frozenset(
        (
            *("accumulate", "add_ready_hook", "collect_gradient_in", "compute_copy", "gradient_target", "linear_copy"),
            *("mark_gradient", "origin", "replace_data", "run_ready_hooks", "use_buffers"),
        )
    )

    # Makes NumPy leave `array * tensor` to `Tensor.__rmul__`.
    __array_ufunc__ = None

    def __init__(self, data: Array, requires_grad: bool = False, function: "Function | None" = None) -> None:
        # NumPy returns a scalar, not an array, where a result has no dimensions.
        self.data = np.asarray(data) if isinstance(data, np.generic) else data
        self.requires_grad = requires_grad
        self._function = function
        # The gradient, or None; and the buffer that it is written to, which outlives it.
        self._gradient: Array | None = None
        self._gradient_buffer: Array | None = None
        self._ready_hooks: list[Callable[[], None]] = []

    if not TYPE_CHECKING:  # to mypy every name would be there

        def __getattr__(self, name):
            if name.startswith("_"):
                raise AttributeError(f"{type(self).__name__} has no {name!r}")
            public = {*dir(type(self)), *vars(self)} - self._internal
            raise no_such_name(type(self).__name__, name, public)

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of elements along each axis."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the elements, NumPy's also on a GPU."""
        return self.data.dtype

    @property
    def T(self) -> "Tensor":  # noqa: N802  # as in NumPy and PyTorch
        """This matrix transposed. Raises `ValueError` unless there are two axes: `transpose` swaps any two."""
        if self.ndim != 2:
            raise ValueError(f"T is for two axes, not for shape {self.shape}: use transpose or permute")
        return self.permute(1, 0)

    @property
    def compute_copy(self) -> Array:
        """The array that operations other than linear maps compute with: `data`, or on a GPU a parameter's copy."""
        return self.data

    @property
    def linear_copy(self) -> Array:
        """The array that linear maps compute with: `data`, or a parameter's copy in bfloat16."""
        return self.data

    @property
    def device(self) -> str:
        """`"cpu"` or `"cuda:N"`."""
        return backend.device_of(self.data)

    def numpy(self) -> np.ndarray:
        """Return the values as a NumPy array; on the CPU it shares memory with the tensor."""
        return backend.to_host(self.data)

    def item(self) -> Any:
        """Return the only element as a Python number."""
        return self.data.item()

    def detach(self) -> "Tensor":
        """Return a tensor of the same memory that takes no part in differentiation."""
        return Tensor(self.data)

    def to(self, target: "str | np.dtype | type") -> "Tensor":
        """Return this tensor on a device ("cpu", "cuda:0") or in a dtype, detached; itself if nothing changes."""
        data = backend.to_device(self.data, target) if isinstance(target, str) else self.data.astype(target, copy=False)
        return self if data is self.data else Tensor(data)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set whether this leaf collects a gradient, and return it."""
        self.requires_grad = requires_grad
        return self

    @property
    def origin(self) -> "Function | Tensor":
        """The node that receives this tensor's gradient: the function that made it, or the tensor itself if a leaf."""
        return self._function or self

    @property
    def grad(self) -> "Tensor | None":
        """The gradient collected so far, or None. It shares memory with the buffer that backward adds to."""
        return None if self._gradient is None else Tensor(self._gradient)

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient has been collected since `zero_grad`."""
        return self._gradient is not None

    def backward(self, gradient: "Tensor | Array | None" = None) -> None:
        """Add the gradient of this tensor to the `grad` of every leaf that it was computed from.

        `gradient`, of this tensor's shape, weights the elements; a tensor with one element needs none. Raises
        `ValueError` for a wrong shape, or if no leaf behind this tensor requires a gradient.
        """
        from lucid.autograd import engine

        if not self.requires_grad:
            raise ValueError("backward: this tensor was not computed from anything with requires_grad=True")
        if gradient is None:
            if self.size != 1:
                raise ValueError(f"backward: a tensor of shape {self.shape} needs the argument gradient, of that shape")
            gradient = backend.array_module(self.data).ones_like(self.data)
        data = gradient.data if isinstance(gradient, Tensor) else gradient
        if data.shape != self.shape:
            raise ValueError(f"backward: gradient has shape {data.shape}, the tensor has {self.shape}")
        engine.backward(self, data)

    def zero_grad(self) -> None:
        """Forget the gradient. Nothing is cleared: the next contribution overwrites the buffer."""
        self._gradient = None

    def replace_data(self, data: Array) -> None:
        """Hold `data` instead (another device or dtype); the gradient is dropped."""
        self.data, self._gradient, self._gradient_buffer = data, None, None

    def use_buffers(self, data: Array, gradient: Array) -> None:
        """Move values and gradient into these arrays of this tensor's shape: views into flat buffers."""
        data[...] = self.data
        if self._gradient is not None:
            gradient[...] = self._gradient
            self._gradient = gradient
        self.data, self._gradient_buffer = data, gradient

    def collect_gradient_in(self, buffer: Array) -> None:
        """Forget the gradient, and make the next backward overwrite `buffer`, which has this tensor's shape."""
        self._gradient, self._gradient_buffer = None, buffer

    def mark_gradient(self) -> None:
        """Take the content of the buffer as the gradient: a replayed CUDA graph wrote it without calling Python."""
        self._gradient = self._gradient_buffer

    def gradient_target(self, shape: tuple[int, ...]) -> Target:
        """Return where to write or add a contribution of `shape`, this tensor's. The caller must do so at once."""
        if self._gradient_buffer is None:
            self._gradient_buffer = backend.array_module(self.data).empty_like(self.data, order="C")
        target = Target(self._gradient_buffer, self.has_gradient)
        self._gradient = self._gradient_buffer
        return target

    def accumulate(self, contribution: "Gradient") -> None:
        """Add a contribution to the gradient; the first one after `zero_grad` overwrites.

        A contribution that is this tensor's `gradient_target` has already been written there.
        """
        from lucid.autograd.function import Deferred

        assert contribution is not None, "a function gave no gradient for an input that needs one"
        if isinstance(contribution, Target):
            if contribution.out is self._gradient_buffer:
                return
            contribution = contribution.out
        out, accumulate = target = self.gradient_target(self.shape)
        if isinstance(contribution, Deferred):
            contribution.write(out, out if accumulate else None)
        else:
            put(contribution, target)

    def add_ready_hook(self, callback: Callable[[], None]) -> None:
        """Call `callback` in each backward, once all uses of this leaf have contributed to its gradient."""
        self._ready_hooks.append(callback)

    def run_ready_hooks(self) -> None:
        for callback in self._ready_hooks:
            callback()

    def __add__(self, other: Any) -> "Tensor":
        return operations.Add.apply(self, other)

    def __radd__(self, other: Any) -> "Tensor":
        return operations.Add.apply(other, self)

    def __sub__(self, other: Any) -> "Tensor":
        return operations.Subtract.apply(self, other)

    def __rsub__(self, other: Any) -> "Tensor":
        return operations.Subtract.apply(other, self)

    def __mul__(self, other: Any) -> "Tensor":
        return operations.Multiply.apply(self, other)

    def __rmul__(self, other: Any) -> "Tensor":
        return operations.Multiply.apply(other, self)

    def __truediv__(self, other: Any) -> "Tensor":
        return operations.Divide.apply(self, other)

    def __rtruediv__(self, other: Any) -> "Tensor":
        return operations.Divide.apply(other, self)

    def __pow__(self, exponent: float) -> "Tensor":
        return operations.Power.apply(self, exponent)

    def __neg__(self) -> "Tensor":
        return self * -1

    def __matmul__(self, other: Any) -> "Tensor":
        return operations.MatMul.apply(self, other)

    def __rmatmul__(self, other: Any) -> "Tensor":
        return operations.MatMul.apply(other, self)

    def __getitem__(self, index: Any) -> "Tensor":
        parts = tuple(map(array_of, index)) if isinstance(index, tuple) else array_of(index)
        return operations.Index.apply(self, index=parts)

    def sum(self, axis: Axes = None, keepdims: bool = False, *, dim: Axes = None, keepdim: bool = False) -> "Tensor":
        """Return the sum of all elements, or of those along an axis or several."""
        return operations.Sum.apply(self, axis=_one_of(axis, dim), keepdims=keepdims or keepdim)

    def mean(self, axis: Axes = None, keepdims: bool = False, *, dim: Axes = None, keepdim: bool = False) -> "Tensor":
        """Return the mean of all elements, or of those along an axis or several."""
        total = self.sum(axis, keepdims, dim=dim, keepdim=keepdim)
        return total * (total.size / self.size)

    @overload
    def max(self) -> "Tensor": ...

    @overload
    def max(self, axis: int, keepdims: bool = False, *, keepdim: bool = False) -> Greatest: ...

    @overload
    def max(self, *, dim: int, keepdims: bool = False, keepdim: bool = False) -> Greatest: ...

    def max(
        self, axis: int | None = None, keepdims: bool = False, *, dim: int | None = None, keepdim: bool = False
    ) -> "Tensor | Greatest":
        """Return the greatest element; along an axis `(values, indices)`, as in PyTorch.

        Equal greatest elements share the gradient; along an axis the first gets it. Raises `ValueError` if there is no
        element.
        """
        axis = _one_of(axis, dim)
        if axis is None:
            return operations.Max.apply(self)
        places = self.argmax(axis, keepdims=True)
        values = operations.TakeAlong.apply(self, indices=places.data, axis=axis)
        if keepdims or keepdim:
            return Greatest(values, places)
        shape = places.data.squeeze(axis).shape
        return Greatest(values.reshape(shape), places.reshape(shape))

    def argmax(
        self, axis: int | None = None, keepdims: bool = False, *, dim: int | None = None, keepdim: bool = False
    ) -> "Tensor":
        """Return the place (int64) of the greatest element, of all or along an axis; of equal ones the first."""
        xp = backend.array_module(self.data)
        return Tensor(xp.asarray(xp.argmax(self.data, axis=_one_of(axis, dim), keepdims=keepdims or keepdim)))

    def abs(self) -> "Tensor":
        """Return the absolute value of each element."""
        return operations.Abs.apply(self)

    def exp(self) -> "Tensor":
        """Return e to the power of each element."""
        return operations.Exp.apply(self)

    def log(self) -> "Tensor":
        """Return the natural logarithm of each element."""
        return operations.Log.apply(self)

    def sqrt(self) -> "Tensor":
        """Return the square root of each element."""
        return self**0.5

    def tanh(self) -> "Tensor":
        """Return the hyperbolic tangent of each element."""
        return operations.Tanh.apply(self)

    def softmax(self, axis: int | None = None, *, dim: int | None = None) -> "Tensor":
        """Return e to the power of each element, divided by the sum of these along an axis, by default the last."""
        axis = _one_of(axis, dim)
        return operations.Softmax.apply(self, axis=-1 if axis is None else axis)

    def reshape(self, *shape: Any) -> "Tensor":
        """Return the same elements in another shape, given as numbers or as a tuple; one number may be -1."""
        return operations.Reshape.apply(self, shape=_numbers(shape))

    def view(self, *shape: Any) -> "Tensor":
        """Return the same elements in another shape: `reshape`, which copies what cannot be a view."""
        return self.reshape(*shape)

    def transpose(self, first: int, second: int) -> "Tensor":
        """Return this tensor with two dimensions swapped, as in PyTorch."""
        axes = list(range(self.ndim))
        axes[first], axes[second] = axes[second], axes[first]
        return self.permute(*axes)

    def permute(self, *dimensions: Any) -> "Tensor":
        """Return this tensor with all its dimensions in another order, given as numbers or as one tuple."""
        axes = tuple(range(self.ndim)[dimension] for dimension in _numbers(dimensions))
        return operations.Permute.apply(self, axes=axes)

    def __eq__(self, other: object) -> "Tensor":  # type: ignore[override]  # elementwise, as in NumPy and PyTorch
        return Tensor(np.equal(self.data, array_of(other)))

    def __ne__(self, other: object) -> "Tensor":  # type: ignore[override]  # elementwise, as in NumPy and PyTorch
        return Tensor(np.not_equal(self.data, array_of(other)))

    def __lt__(self, other: Any) -> "Tensor":
        return Tensor(np.less(self.data, array_of(other)))

    def __le__(self, other: Any) -> "Tensor":
        return Tensor(np.less_equal(self.data, array_of(other)))

    def __gt__(self, other: Any) -> "Tensor":
        return Tensor(np.greater(self.data, array_of(other)))

    def __ge__(self, other: Any) -> "Tensor":
        return Tensor(np.greater_equal(self.data, array_of(other)))

    __hash__ = object.__hash__

    def __len__(self) -> int:
        return len(self.data)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __float__(self) -> float:
        return float(self.data)

    def __int__(self) -> int:
        return int(self.data)

    def __format__(self, specification: str) -> str:
        return format(self.item() if specification else self, specification) if self.ndim == 0 else str(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.data.__dlpack_device__()

    def __repr__(self) -> str:
        values = np.array2string(self.numpy(), separator=", ", prefix="tensor(", threshold=100)
        device = "" if self.device == backend.CPU else f", device={self.device!r}"
        graph = ", requires_grad=True" if self.requires_grad else ""
        return f"tensor({values}{device}{graph})"


def tensor(values: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """Make a tensor from an array, a tensor, numbers or nested lists.

    Arrays keep their dtype; they are not copied unless dtype or device change. Python floats become float32. `device`
    is "cpu", "cuda" or "cuda:N"; by default the values stay on their device.
    """
    data = array_of(values)
    if not hasattr(data, "shape"):
        data = np.asarray(data)
        if data.dtype == np.float64:
            data = data.astype(np.float32)
    if dtype is not None:
        data = data.astype(dtype, copy=False)
    if device is not None:
        data = backend.to_device(data, device)
    return Tensor(data, requires_grad=requires_grad)


def cat(tensors: Sequence[Any], axis: int | None = None, *, dim: int | None = None) -> Tensor:
    """Return tensors or arrays one behind the other along an axis, by default the first.

    Their other axes have equal lengths. Raises `ValueError` if these differ, or if there are no tensors, and
    `TypeError` if the axis is given as `axis` and as `dim`.
    """
    if not tensors:
        raise ValueError("cat takes one tensor or more")
    return operations.Concatenate.apply(*tensors, axis=_one_of(axis, dim) or 0)


AxisT = TypeVar("AxisT", bound=Axes)


def _one_of(axis: AxisT, dim: AxisT) -> AxisT:
    """Return the argument that has two names. Raises `TypeError` if both are given."""
    if axis is not None and dim is not None:
        raise TypeError("axis and dim are two names of one argument: give one of them")
    return axis if dim is None else dim


def array_of(value: Any) -> Any:
    """Return the array inside a tensor; return any other value unchanged."""
    return value.data if isinstance(value, Tensor) else value


def _numbers(given: tuple[Any, ...]) -> tuple[int, ...]:
    """Return numbers that were given one by one, or as one tuple or list."""
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], tuple | list) else given
