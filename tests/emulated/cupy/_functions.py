"""CuPy's functions of arrays, made of NumPy's. What CuPy has not is not here either."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cupy import _errors, emulation
from cupy._array import evaluate, multiply_matrices, ndarray, to_host
from cupy._parameters import PARAMETERS, check

# Functions the size of whose result the host has to know.
WAITING = ("allclose", "argwhere", "array_equal", "bincount", "flatnonzero", "unique")
PRODUCTS = ("dot", "einsum", "inner", "matmul", "outer", "tensordot", "vdot")
# All others.
SIMPLE = (
    *("atleast_1d", "atleast_2d", "broadcast_arrays", "pad"),
    *(name for name in PARAMETERS if name not in WAITING + PRODUCTS),
)
UFUNCS = (
    *("absolute", "add", "bitwise_and", "bitwise_or", "bitwise_xor", "ceil", "divide", "equal", "exp", "exp2", "expm1"),
    *("floor", "floor_divide", "fmax", "fmin", "greater", "greater_equal", "invert", "isfinite", "isinf", "isnan"),
    *("left_shift", "less", "less_equal", "log", "log1p", "log2", "logical_and", "logical_not", "logical_or"),
    *("maximum", "minimum", "multiply", "negative", "not_equal", "power", "reciprocal", "remainder", "right_shift"),
    *("rint", "sign", "sqrt", "square", "subtract", "tanh", "true_divide", "positive", "logical_xor", "cos", "sin"),
)


class ufunc:
    """A function of elements."""

    def __init__(self, name: str) -> None:
        self.name = self.__name__ = name
        self._numpy = getattr(np, name)
        self.nin, self.nout, self.nargs = self._numpy.nin, self._numpy.nout, self._numpy.nargs

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        for each in arguments:
            if isinstance(each, list | tuple):
                raise TypeError(f"Unsupported type {type(each)}")
        if len(arguments) > self.nin:
            arguments, more["out"] = arguments[: self.nin], arguments[self.nin]
        return evaluate(self._numpy, *arguments, **more)

    def reduce(self, array: Any, axis: Any = 0, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return evaluate(self._numpy.reduce, array, axis=axis, dtype=dtype, out=out, keepdims=keepdims)

    def accumulate(self, array: Any, axis: int = 0, dtype: Any = None, out: Any = None) -> Any:
        if self.name not in ("add", "multiply"):
            raise NotImplementedError(f"cupy.{self.name}.accumulate is not supported")
        return evaluate(self._numpy.accumulate, array, axis=axis, dtype=dtype, out=out)

    def at(self, a: ndarray, indices: Any, b: Any = None) -> None:
        host, values = a._own(), to_host(b)
        indices = to_host(indices)
        emulation.submit(lambda: self._numpy.at(host, indices, values), memory=[a._memory])

    def __repr__(self) -> str:
        return f"<ufunc 'cupy_{self.name}'>"


def _function(name: str, do: Callable[..., Any] = evaluate, waits: bool = False) -> Callable[..., Any]:
    """Return CuPy's function of a name, whose part NumPy's does."""
    numpy_function = getattr(np, name)

    def call(*arguments: Any, **more: Any) -> Any:
        check(name, len(arguments), more)
        if waits:
            emulation.wait(name)
        return do(numpy_function, *arguments, **more)

    call.__name__ = name
    return call


MADE: dict[str, Any] = {
    **{name: _function(name) for name in SIMPLE},
    **{name: ufunc(name) for name in UFUNCS},
    **{name: _function(name, waits=True) for name in WAITING},
    **{name: _function(name, multiply_matrices) for name in PRODUCTS},
}


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def empty_like(
    prototype: ndarray, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    made = np.empty_like(prototype._host, dtype, order, shape=shape)
    return ndarray(made.shape, made.dtype, order="C" if made.flags.c_contiguous else "F")


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 0, dtype, order)


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 1, dtype, order)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, ndarray) else np.array(fill_value).dtype
    array = ndarray(shape, dtype, order=order)
    array[...] = fill_value
    return array


def full_like(
    a: ndarray, fill_value: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    array = empty_like(a, dtype, order, shape=shape)
    array[...] = fill_value
    return array


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    return _without_host_data(np.arange(0, start, step, dtype) if stop is None else np.arange(start, stop, step, dtype))


def linspace(
    start: Any, stop: Any, num: int = 50, endpoint: bool = True, retstep: bool = False, dtype: Any = None, axis: int = 0
) -> ndarray:
    assert not retstep
    return _without_host_data(np.linspace(start, stop, num, endpoint, dtype=dtype, axis=axis))


def eye(N: int, M: int | None = None, k: int = 0, dtype: Any = float, order: str = "C") -> ndarray:
    return _without_host_data(np.eye(N, M, k, dtype, order))


def _without_host_data(values: np.ndarray) -> ndarray:
    """Return what a kernel makes of numbers alone."""
    return evaluate(lambda: values)


def array(
    obj: Any, dtype: Any = None, copy: bool | None = True, order: str = "K", subok: bool = False, ndmin: int = 0,
    *, blocking: bool = False,
) -> ndarray:  # fmt: skip
    if isinstance(obj, ndarray):
        same = dtype is None or obj.dtype == np.dtype(dtype)
        made = obj if same and not copy else obj.astype(obj.dtype if dtype is None else dtype)
        return made if made.ndim >= ndmin else made.reshape((1,) * (ndmin - made.ndim) + made.shape)
    if isinstance(obj, list | tuple) and any(isinstance(each, ndarray) for each in obj):
        stacked = MADE["stack"](list(obj))
        return stacked if dtype is None else stacked.astype(dtype)
    if emulation.is_capturing():
        emulation.stream_of(None)._capture.is_valid = False
        raise _errors.unsupported("a copy of an array of the host, of which the graph would keep these numbers")
    return ndarray._new(np.array(obj, dtype, ndmin=ndmin))


def asarray(
    a: Any, dtype: Any = None, order: str | None = None, *, copy: bool | None = None, blocking: bool = False
) -> ndarray:
    return array(a, dtype, copy=copy)


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    if not isinstance(a, ndarray):
        return asarray(a, dtype)
    if a.flags.c_contiguous and (dtype is None or a.dtype == np.dtype(dtype)):
        return a
    return evaluate(lambda host: np.array(host, dtype, order="C"), a)


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    return a.get(stream, order, out, blocking) if isinstance(a, ndarray) else np.asarray(a)


def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    to, of, mask = dst._own(), to_host(src), True if where is None else to_host(where)
    used = [each._memory for each in (dst, src, where) if isinstance(each, ndarray)]
    emulation.submit(lambda: np.copyto(to, of, casting, where=mask), memory=used)


def argmax(a: ndarray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return evaluate(lambda host, **named: np.argmax(host, axis, keepdims=keepdims, **named), a, **_out(out))


def argmin(a: ndarray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return evaluate(lambda host, **named: np.argmin(host, axis, keepdims=keepdims, **named), a, **_out(out))


def _out(out: ndarray | None) -> dict[str, ndarray]:
    return {} if out is None else {"out": out}


def argsort(a: ndarray, axis: int | None = -1, kind: str | None = None) -> ndarray:
    if kind not in (None, "stable"):
        raise ValueError("kind can only be None or 'stable'")
    return evaluate(lambda host: np.argsort(host, axis, kind="stable"), a)


def take(a: ndarray, indices: Any, axis: int | None = None, out: ndarray | None = None) -> ndarray:
    if isinstance(indices, list | np.ndarray) and np.ndim(indices):
        indices = asarray(indices)
    return evaluate(
        lambda host, index, out=None: np.take(host, index, axis, out),
        *(a, indices),
        **_out(out),
        shape_of=lambda host, index: np.take(host, np.zeros_like(index), axis),
    )


def take_along_axis(a: ndarray, indices: ndarray, axis: int) -> ndarray:
    return evaluate(
        lambda host, index: np.take_along_axis(host, index, axis),
        *(a, indices),
        shape_of=lambda host, index: np.take_along_axis(host, np.zeros_like(index), axis),
    )


def nonzero(a: ndarray) -> tuple[ndarray, ...]:
    return a.nonzero()


def may_share_memory(a: Any, b: Any, max_work: int | None = None) -> bool:
    both = isinstance(a, ndarray) and isinstance(b, ndarray)
    return both and bool(np.may_share_memory(a._host, b._host))


def shares_memory(a: Any, b: Any, max_work: int | None = None) -> bool:
    return may_share_memory(a, b)


def shape(a: Any) -> tuple[int, ...]:
    return a.shape if isinstance(a, ndarray) else np.shape(a)


def ndim(a: Any) -> int:
    return a.ndim if isinstance(a, ndarray) else np.ndim(a)


def size(a: Any, axis: int | None = None) -> int:
    return a.size if axis is None else a.shape[axis]


def isscalar(element: Any) -> bool:
    return np.isscalar(element)


def get_array_module(*args: Any) -> Any:
    import cupy

    return cupy if any(isinstance(each, ndarray) for each in args) else np
