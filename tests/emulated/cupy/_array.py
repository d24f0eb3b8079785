"""The emulated device array: a NumPy array that is wrapped, and that does not mix with others, as CuPy's do not.

`evaluate` is how all functions of arrays are done, and recorded where the stream captures.
"""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cupy import _errors, _transfers, emulation
from cupy._parameters import check
from cupy.cuda import device, memory


class Flags:
    """How an array lies in memory."""

    def __init__(self, host: np.ndarray) -> None:
        self.c_contiguous, self.f_contiguous = host.flags.c_contiguous, host.flags.f_contiguous
        self.owndata = host.base is None or host.base.dtype == np.uint8
        self.forc, self.fnc = host.flags.forc, host.flags.fnc

    def __getitem__(self, name: str) -> bool:
        return getattr(self, name.lower())


class ndarray:
    """An array of the current device, unwritten, or one at `memptr`."""

    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: str = "C"
    ) -> None:
        dtype, shape = np.dtype(dtype), (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        pointer = memory.alloc(size) if memptr is None else memptr
        start = pointer.ptr - pointer.mem.ptr
        room = pointer.mem._bytes[start : start + size]
        self._host = np.ndarray(shape, dtype, room.data if size else np.empty(0, np.uint8), 0, strides, order)
        self._memory, self._base = pointer.mem, None
        if memptr is None:
            _poison(self._host)

    @classmethod
    def _view(cls, host: np.ndarray, like: "ndarray") -> "ndarray":
        """Return a view of the memory of another array."""
        array = cls.__new__(cls)
        array._host, array._memory = host, like._memory
        array._base = like if like._base is None else like._base
        return array

    @classmethod
    def _new(cls, value: Any) -> "ndarray":
        """Return a new array that holds a NumPy array, or scalar."""
        value = np.asarray(value)
        order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        array = cls(value.shape, value.dtype, order=order)
        array._host[...] = value
        return array

    # What it is.

    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    @shape.setter
    def shape(self, shape: Any) -> None:
        self._host.shape = shape

    @property
    def dtype(self) -> np.dtype:
        return self._host.dtype

    @property
    def ndim(self) -> int:
        return self._host.ndim

    @property
    def size(self) -> int:
        return self._host.size

    @property
    def itemsize(self) -> int:
        return self._host.itemsize

    @property
    def nbytes(self) -> int:
        return self._host.nbytes

    @property
    def strides(self) -> tuple[int, ...]:
        return self._host.strides

    @property
    def flags(self) -> Flags:
        return Flags(self._host)

    @property
    def base(self) -> "ndarray | None":
        return self._base

    @property
    def device(self) -> device.Device:
        return device.Device(self._memory.device_id)

    @property
    def data(self) -> memory.MemoryPointer:
        # NumPy says of an array without elements that it begins somewhere.
        return memory.MemoryPointer(self._memory, self._host.ctypes.data - self._memory.ptr if self.size else 0)

    @property
    def T(self) -> "ndarray":
        return ndarray._view(self._host.T, self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "data": (self.data.ptr, False),
            "version": 3,
            "strides": None if self._host.flags.c_contiguous else self.strides,
            "stream": 1,
        }

    def _own(self) -> np.ndarray:
        """Return what is wrapped. Raises if it is on another device than the current one, as CuPy does."""
        if self._memory.device_id != device.get_device_id():
            raise ValueError(
                f"Array device must be same as the current device: array device = {self._memory.device_id} while "
                f"current = {device.get_device_id()}"
            )
        return self._host

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator["ndarray"]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return "unknown while the stream captures" if emulation.is_capturing() else repr(self.get())

    # To the host and back.

    def get(
        self, stream: Any = None, order: str = "C", out: np.ndarray | None = None, blocking: bool = True
    ) -> np.ndarray:
        if out is None:
            out = np.empty(self.shape, self.dtype, order if order in "CF" else "C")
        elif not isinstance(out, np.ndarray):
            raise TypeError(f"Only numpy.ndarray can be obtained from cupy.ndarray: {type(out)}")
        elif out.shape != self.shape or out.dtype != self.dtype:
            raise TypeError(f"the output has shape {out.shape} and type {out.dtype}, not {self.shape} and {self.dtype}")
        if not self._host.flags.c_contiguous:
            with emulation.stream_of(stream):
                """CuPy makes a copy in a block of its own."""
        if blocking:
            emulation.wait("get", stream)
            np.copyto(out, self._host)
        else:
            _transfers.to_host(self._host, out, stream, [self._memory])
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError(f"Only numpy.ndarray can be set to cupy.ndarray: {type(arr)}")
        if arr.dtype != self.dtype or arr.shape != self.shape:
            raise TypeError(f"{arr.dtype} {arr.shape} array cannot be set to {self.dtype} {self.shape} array")
        _transfers.to_device(arr, self._host, stream, [self._memory])

    def item(self) -> Any:
        emulation.wait("item")
        return self._host.item()

    def tolist(self) -> Any:
        emulation.wait("tolist")
        return self._host.tolist()

    def tobytes(self, order: str = "C") -> bytes:
        emulation.wait("tobytes")
        return self._host.tobytes(order)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        return operator.index(self.item())

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError("The truth value of an array with more than one element is ambiguous")
        return bool(self.item())

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array "
            "explicitly."
        )

    # Functions of NumPy that are given one.

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        import cupy

        own = getattr(cupy, ufunc.__name__, None)
        out = kwargs.get("out")
        if isinstance(out, tuple):
            kwargs["out"] = out[0]
            if not isinstance(out[0], ndarray):
                return NotImplemented
        return NotImplemented if own is None else getattr(own, method)(*inputs, **kwargs)

    def __array_function__(self, func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
        import cupy

        own = getattr(cupy, func.__name__, None)
        return NotImplemented if own is None else own(*args, **kwargs)

    # Elements.

    def __getitem__(self, index: Any) -> "ndarray":
        index = tuple(_index(index))
        if not any(isinstance(each, np.ndarray) for each in index):
            # With an ellipsis, one element is a view as well.
            full = index if any(each is Ellipsis for each in index) else (*index, Ellipsis)
            return ndarray._view(self._own()[full], self)
        return evaluate(lambda host: host[index], self, shape_of=lambda host: host[_harmless(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        host, index = self._own(), tuple(_index(index, is_written=np.ndim(value) == 0))
        value, used = to_host(value), [each._memory for each in (self, value) if isinstance(each, ndarray)]
        emulation.submit(lambda: host.__setitem__(index, value), memory=used)

    # Methods that are NumPy's.

    def astype(
        self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True
    ) -> "ndarray":
        if not copy and self.dtype == np.dtype(dtype):
            return self
        return evaluate(lambda host: host.astype(dtype, order), self)

    def copy(self, order: str = "C") -> "ndarray":
        return evaluate(lambda host: host.copy(order), self)

    def __copy__(self) -> "ndarray":
        return self.copy()

    def __deepcopy__(self, memo: Any) -> "ndarray":
        return self.copy()

    def fill(self, value: Any) -> None:
        host, value = self._own(), to_host(value)
        emulation.submit(lambda: host.fill(value), memory=[self._memory])

    def sort(self, axis: int = -1, kind: str | None = None) -> None:
        host = self._own()
        emulation.submit(lambda: host.sort(axis, kind), memory=[self._memory])

    def view(self, dtype: Any = None, type: Any = None) -> "ndarray":
        return ndarray._view(self._host.view() if dtype is None else self._host.view(dtype), self)

    def reshape(self, *shape: Any, order: str = "C") -> "ndarray":
        return evaluate(lambda host: host.reshape(*shape, order=order), self)

    def argmax(self, axis: Any = None, out: Any = None, dtype: Any = None, keepdims: bool = False) -> "ndarray":
        return evaluate(lambda host: host.argmax(axis, keepdims=keepdims), self)

    def argmin(self, axis: Any = None, out: Any = None, dtype: Any = None, keepdims: bool = False) -> "ndarray":
        return evaluate(lambda host: host.argmin(axis, keepdims=keepdims), self)

    def argsort(self, axis: int | None = -1, kind: str | None = None) -> "ndarray":
        import cupy

        return cupy.argsort(self, axis, kind)

    def take(self, indices: Any, axis: int | None = None, out: Any = None) -> "ndarray":
        import cupy

        return cupy.take(self, indices, axis, out)

    def nonzero(self) -> tuple["ndarray", ...]:
        emulation.wait("nonzero")
        return tuple(map(ndarray._new, self._host.nonzero()))

    def dot(self, b: Any, out: Any = None) -> "ndarray":
        return multiply_matrices(np.dot, self, b, out=out)

    def __matmul__(self, other: Any) -> "ndarray":
        return multiply_matrices(np.matmul, self, other)


def _poison(host: np.ndarray) -> None:
    """Fill an array that nothing has been written into, so that what stays so is seen."""
    if host.dtype.kind in "iu":
        host.fill(np.iinfo(host.dtype).max - 7)
    elif host.dtype.kind != "b":
        host.fill(np.nan)


def to_host(value: Any) -> Any:
    """Return an operand as NumPy gets it. Raises for a NumPy array with dimensions, which CuPy does not take either."""
    if isinstance(value, ndarray):
        return value._own()
    if isinstance(value, np.ndarray) and value.ndim > 0:
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, list | tuple):
        return type(value)(map(to_host, value))
    return value


def _arrays_in(values: Any) -> Iterator[ndarray]:
    for value in values:
        if isinstance(value, ndarray):
            yield value
        elif isinstance(value, list | tuple):
            yield from _arrays_in(value)


def evaluate(
    function: Callable[..., Any], *arguments: Any, shape_of: Callable[..., Any] | None = None, **more: Any
) -> Any:
    """Return what a function of NumPy makes of arrays: views as such, all else as new arrays, never as scalars.

    While the stream captures, `shape_of` may do the function's part, whose arguments then hold nothing that counts.
    """
    given, named = [to_host(each) for each in arguments], {name: to_host(each) for name, each in more.items()}
    arrays = list(_arrays_in([*arguments, *more.values()]))
    used, out = [array._memory for array in arrays], more.get("out")
    if out is not None:
        if not isinstance(out, ndarray):
            raise TypeError("return arrays must be of type cupy.ndarray")
        emulation.submit(lambda: function(*given, **named), memory=used)
        return out
    if not emulation.is_capturing():
        return _wrapped(function(*given, **named), arrays)
    with np.errstate(all="ignore"):
        made = _wrapped((shape_of or function)(*given, **named), arrays)
    new = [each for each in _arrays_in([made]) if each._base is None and not any(each is array for array in arrays)]
    if new:

        def again() -> None:
            results = function(*given, **named)
            fresh = results if isinstance(results, tuple | list) else [results]
            for to, of in zip(_arrays_in([made]), fresh, strict=True):
                to._host[...] = of

        emulation.submit(again, memory=[*used, *(each._memory for each in new)])
    return made


def _wrapped(result: Any, arrays: list[ndarray]) -> Any:
    if isinstance(result, tuple | list):
        return type(result)(_wrapped(each, arrays) for each in result)
    if isinstance(result, np.generic):
        return ndarray._new(result)
    if not isinstance(result, np.ndarray):
        return result
    for array in arrays:
        if result is array._host:
            return array
    for array in arrays:
        if result.size and np.may_share_memory(result, array._host):
            return ndarray._view(result, array)
    return ndarray._new(result)


def multiply_matrices(function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """Do a product as cuBLAS does it for CuPy, which refuses while the stream captures."""
    if emulation.is_capturing():
        emulation.stream_of(None)._capture.is_valid = False
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    emulation.products += 1
    return evaluate(function, *arguments, **more)


def _index(index: Any, is_written: bool = False) -> list[Any]:
    """Return the parts of an index for NumPy. The host waits for a mask, unless one number is written through it."""
    parts = []
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, list) or (isinstance(part, np.ndarray) and part.ndim > 0):
            # CuPy copies these to the device.
            if emulation.is_capturing():
                raise _errors.unsupported("an index that is an array of the host")
            part = np.asarray(part)
        elif isinstance(part, ndarray):
            part = part._own()
        elif isinstance(part, slice):
            part = slice(
                *(each if each is None else operator.index(each) for each in (part.start, part.stop, part.step))
            )
        if isinstance(part, np.ndarray) and part.dtype == bool and not is_written:
            emulation.wait("an index that is a mask")
        parts.append(part)
    return parts


def _harmless(index: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return an index whose integers fit any array."""
    return tuple(np.zeros_like(part) if isinstance(part, np.ndarray) else part for part in index)


def _refuses(other: Any) -> bool:
    """Whether an operator leaves the operation to the other operand: to a class of its own, that is no number."""
    return not isinstance(other, ndarray | np.ndarray | np.generic | bool | int | float | complex)


def _define_operators() -> None:
    binary = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide, "pow": np.power,
        "floordiv": np.floor_divide, "mod": np.remainder, "and": np.bitwise_and, "or": np.bitwise_or,
        "xor": np.bitwise_xor, "lshift": np.left_shift, "rshift": np.right_shift,
    }  # fmt: skip
    compared = {
        "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal
    }  # fmt: skip
    unary = {"neg": np.negative, "pos": np.positive, "abs": np.absolute, "invert": np.invert}

    def forward(function: np.ufunc) -> Callable[..., Any]:
        return lambda self, other: NotImplemented if _refuses(other) else evaluate(function, self, other)

    def reflected(function: np.ufunc) -> Callable[..., Any]:
        return lambda self, other: NotImplemented if _refuses(other) else evaluate(function, other, self)

    def in_place(function: np.ufunc) -> Callable[..., Any]:
        return lambda self, other: evaluate(function, self, other, out=self)

    for name, function in (binary | compared).items():
        setattr(ndarray, f"__{name}__", forward(function))
    for name, function in binary.items():
        setattr(ndarray, f"__r{name}__", reflected(function))
        setattr(ndarray, f"__i{name}__", in_place(function))
    for name, function in unary.items():
        setattr(ndarray, f"__{name}__", lambda self, function=function: evaluate(function, self))


def _define_methods() -> None:
    def method(name: str) -> Callable[..., Any]:
        def call(self: ndarray, *arguments: Any, **more: Any) -> Any:
            if name != "transpose":
                check(name, 1 + len(arguments), more)
            return evaluate(lambda host, *rest, **named: getattr(host, name)(*rest, **named), self, *arguments, **more)

        call.__name__ = name
        return call

    for name in (
        *("all", "any", "clip", "cumprod", "cumsum", "diagonal", "flatten", "max", "mean", "min", "prod", "ravel"),
        *("repeat", "round", "searchsorted", "squeeze", "std", "sum", "swapaxes", "trace", "transpose", "var"),
    ):
        setattr(ndarray, name, method(name))


_define_operators()
_define_methods()
