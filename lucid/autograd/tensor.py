"""`Tensor`: an array with a memory of how it was made. Feels like PyTorch's, holds a NumPy or a CuPy array."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lucid import backend
from lucid.autograd import operations
from lucid.backend import Array
from lucid.kernels.targets import Target, put

if TYPE_CHECKING:
    from lucid.autograd.function import Function, Gradient


class Tensor:
    """An n-dimensional array that may take part in differentiation.

    `data` is the array itself (NumPy or CuPy). A leaf with `requires_grad` collects its gradient in `grad`, a tensor
    of the same shape and dtype, when `backward` is called on something computed from it.
    """

    # Tells NumPy to leave `array * tensor` to us.
    __array_ufunc__ = None

    def __init__(self, data: Array, requires_grad: bool = False, function: "Function | None" = None) -> None:
        # NumPy makes a scalar of what has no dimensions.
        self.data = np.asarray(data) if isinstance(data, np.generic) else data
        self.requires_grad = requires_grad
        self._function = function
        # The gradient, None where there is none; and the array that it is written to, which outlives it.
        self._gradient: Array | None = None
        self._room: Array | None = None
        self._ready_hooks: list[Callable[[], None]] = []

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def operand(self) -> Array:
        """What operations are given of this tensor: the array itself. A parameter may have a rounded copy for them."""
        return self.data

    @property
    def rounded(self) -> Array:
        """What linear maps are given: they take the rounded copy of a vector, too, if there is one."""
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
        """Return this tensor on a device ("cpu", "cuda:0") or in a dtype, detached; itself where it is so already."""
        data = backend.to_device(self.data, target) if isinstance(target, str) else self.data.astype(target, copy=False)
        return self if data is self.data else Tensor(data)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set whether this leaf collects a gradient, and return it."""
        self.requires_grad = requires_grad
        return self

    @property
    def origin(self) -> "Function | Tensor":
        """What the gradient of this tensor goes to: the function that made it, or itself for a leaf."""
        return self._function or self

    @property
    def grad(self) -> "Tensor | None":
        """The gradient collected so far, or None. Shares memory with the buffer that backward adds to."""
        return None if self._gradient is None else Tensor(self._gradient)

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient has been collected since `zero_grad`."""
        return self._gradient is not None

    def backward(self, gradient: "Tensor | Array | None" = None) -> None:
        """Add the gradient of this tensor to the `grad` of all leaves that it was computed from.

        `gradient` weighs the elements (same shape); it may be left out for a single element.
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
        """Forget the gradient: the next contribution overwrites the buffer, nothing is cleared."""
        self._gradient = None

    def replace_data(self, data: Array) -> None:
        """Hold `data` instead (another device or dtype); the gradient is dropped."""
        self.data, self._gradient, self._room = data, None, None

    def use_buffers(self, data: Array, gradient: Array) -> None:
        """Move values and gradient into these arrays, of this tensor's shape: views into flat buffers."""
        data[...] = self.data
        if self._gradient is not None:
            gradient[...] = self._gradient
            self._gradient = gradient
        self.data, self._room = data, gradient

    def collect_gradient_in(self, buffer: Array) -> None:
        """Let the next backward overwrite `buffer`, of this tensor's shape; the gradient so far is forgotten."""
        self._gradient, self._room = None, buffer

    def mark_gradient(self) -> None:
        """Take what the buffer holds as the gradient: something has written it that this tensor knows nothing of."""
        self._gradient = self._room

    def gradient_target(self, shape: tuple[int, ...]) -> Target:
        """Return where a contribution to the gradient is to be written or added, which the caller does at once.

        `shape` is the contribution's: this tensor's.
        """
        if self._room is None:
            self._room = backend.array_module(self.data).empty_like(self.data, order="C")
        target = Target(self._room, self.has_gradient)
        self._gradient = self._room
        return target

    def accumulate(self, contribution: "Gradient") -> None:
        """Add a contribution to the gradient, unless it has been written there; the first after `zero_grad` overwrites.

        It has been if it is the `gradient_target`.
        """
        from lucid.autograd.function import Deferred

        assert contribution is not None, "a function gave no gradient for an input that needs one"
        if isinstance(contribution, Target):
            if contribution.out is self._room:
                return
            contribution = contribution.out
        out, accumulate = target = self.gradient_target(self.shape)
        if isinstance(contribution, Deferred):
            contribution.write(out, out if accumulate else None)
        else:
            put(contribution, target)

    def add_ready_hook(self, callback: Callable[[], None]) -> None:
        """Call `callback` in each backward when all uses of this leaf have contributed to its gradient."""
        self._ready_hooks.append(callback)

    def run_ready_hooks(self) -> None:
        for callback in self._ready_hooks:
            callback()

    def __add__(self, other: Any) -> "Tensor":
        return operations.add(self, other)

    def __radd__(self, other: Any) -> "Tensor":
        return operations.add(other, self)

    def __sub__(self, other: Any) -> "Tensor":
        return operations.subtract(self, other)

    def __rsub__(self, other: Any) -> "Tensor":
        return operations.subtract(other, self)

    def __mul__(self, other: Any) -> "Tensor":
        return operations.multiply(self, other)

    def __rmul__(self, other: Any) -> "Tensor":
        return operations.multiply(other, self)

    def __truediv__(self, other: Any) -> "Tensor":
        return operations.divide(self, other)

    def __rtruediv__(self, other: Any) -> "Tensor":
        return operations.divide(other, self)

    def __pow__(self, exponent: float) -> "Tensor":
        return operations.power(self, exponent)

    def __neg__(self) -> "Tensor":
        return operations.multiply(self, -1)

    def __matmul__(self, other: Any) -> "Tensor":
        return operations.matmul(self, other)

    def __rmatmul__(self, other: Any) -> "Tensor":
        return operations.matmul(other, self)

    def __getitem__(self, index: Any) -> "Tensor":
        return operations.index(self, tuple(map(array_of, index)) if isinstance(index, tuple) else array_of(index))

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> "Tensor":
        return operations.sum(self, axis, keepdims)

    def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> "Tensor":
        return operations.mean(self, axis, keepdims)

    def exp(self) -> "Tensor":
        return operations.exp(self)

    def log(self) -> "Tensor":
        return operations.log(self)

    def sqrt(self) -> "Tensor":
        return operations.power(self, 0.5)

    def tanh(self) -> "Tensor":
        return operations.tanh(self)

    def softmax(self, axis: int = -1) -> "Tensor":
        return operations.softmax(self, axis)

    def reshape(self, *shape: Any) -> "Tensor":
        """Return the same elements in another shape, which is given as numbers or as one tuple; one may be -1."""
        return operations.reshape(self, shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape)

    def transpose(self, *axes: int) -> "Tensor":
        """Return the axes in this order, or in reverse order if none is given (as NumPy does)."""
        return operations.transpose(self, axes or tuple(reversed(range(self.ndim))))

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

    Arrays keep their dtype, and their memory where neither dtype nor device changes; Python floats become float32.
    `device` is "cpu", "cuda" or "cuda:N"; by default the values stay where they are.
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


def array_of(value: Any) -> Any:
    """Return the array inside a tensor, and anything else as it is."""
    return value.data if isinstance(value, Tensor) else value
