"""Products of linear layers by cuBLASLt, in float32 or bfloat16, added up in float32.

cuBLASLt takes matrices by columns. A matrix of ours, which lies by rows, is its own transpose to it: so it is asked for
the transpose of each product, along whose columns the bias then goes. A matrix may be some columns of a wider one.

How a product is made (its description, the algorithm that the library's heuristic puts first) is a plan, which is made
once for matrices that lie in one way. After that a product is a call on CuPy's current stream, and can be captured. The
same shapes have the same plan, so that every run on one kind of card gives the same bits.
https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api
"""

import ctypes
import functools
from typing import Any, NamedTuple

import numpy as np

from lucid.backend import Array, address, array_module, device_of
from lucid.kernels.cuda import cublaslt
from lucid.kernels.cuda.arrays import empty, plain
from lucid.kernels.cuda.casting import BFLOAT16, round_to_bfloat16
from lucid.kernels.cuda.cublaslt import (
    Algorithm,
    Epilogue,
    HeuristicResult,
    MatmulAttribute,
    Operation,
    PreferenceAttribute,
)
from lucid.kernels.cuda.sums import linear_bias_gradient

# What the library may keep parts of sums in, on each stream: NVIDIA's advice for Hopper.
WORKSPACE_BYTES = 32 * 2**20
# No algorithm asks for matrices that begin on multiples of more.
_MOST_ALIGNMENT = 256
# A training step has about 50 different products. Each number of rows that batches are padded to makes new ones.
_MOST_PLANS = 1024

_ZERO, _ONE = ctypes.c_float(0), ctypes.c_float(1)


def linear(x: Array, weight: Array, bias: Array | None, out: Array | None = None) -> Array:
    rows, factor = _operands(x, weight)
    y = empty(x, len(rows), len(weight), dtype=x.dtype) if out is None else out
    if bias is not None:
        bias = round_to_bfloat16(bias) if y.dtype == BFLOAT16 != bias.dtype else plain(bias, y.dtype)
    biased = _multiply(factor, rows, y, (Operation.T, Operation.N), False, Epilogue.BIAS, bias)
    if bias is not None and not biased:
        y += bias
    return y.reshape(*x.shape[:-1], len(weight)) if out is None else out


def linear_input_gradient(gradient: Array, weight: Array, total: Array | None = None) -> Array:
    rows, factor = _operands(gradient, weight)
    y = empty(gradient, len(rows), weight.shape[1], dtype=gradient.dtype) if total is None else total
    _multiply(factor, rows, y, (Operation.N, Operation.N), total is not None)
    return y.reshape(*gradient.shape[:-1], weight.shape[1]) if total is None else total


def linear_weight_gradient(
    gradient: Array, x: Array, out: Array, accumulate: bool, bias_sums: Array | None = None
) -> None:
    rows, factor = _operands(gradient, x)
    summed = _multiply(factor, rows, out, (Operation.N, Operation.T), accumulate, Epilogue.BGRADB, bias_sums)
    if bias_sums is not None and not summed:
        bias_sums[...] = linear_bias_gradient(gradient)


def _operands(x: Array, y: Array) -> tuple[Array, Array]:
    """Return two arrays as matrices in rows of one type: bfloat16 if one of them is that."""
    if x.dtype != y.dtype:
        x, y = (array if array.dtype == BFLOAT16 else round_to_bfloat16(array) for array in (x, y))
    return _matrix(x), _matrix(y)


def _matrix(x: Array) -> Array:
    """Return x [..., C] as [N, C] in rows; some columns of an array in C order stay where they are."""
    matrix = x if x.ndim == 2 else plain(x).reshape(-1, x.shape[-1])
    return matrix if _is_in_rows(matrix) else plain(matrix)


def _is_in_rows(x: Array) -> bool:
    (rows, width), (stride, step) = x.shape, x.strides
    return (width == 1 or step == x.itemsize) and (rows == 1 or stride >= width * x.itemsize)


class Layout(NamedTuple):
    """How a matrix of ours lies in memory, as cuBLASLt sees it: its rows are columns, `stride` elements apart."""

    rows: int
    columns: int
    stride: int
    dtype: np.dtype[Any]
    alignment: int


class Product(NamedTuple):
    """A product of two matrices, and what is done with the vector that goes with it, which begins on `alignment`."""

    first: Layout
    second: Layout
    out: Layout
    operations: tuple[Operation, Operation]
    epilogue: Epilogue
    alignment: int


def _layout(x: Array) -> Layout:
    columns, rows = x.shape
    return Layout(rows, columns, max(rows, x.strides[0] // x.itemsize), x.dtype, _alignment(x))


def _alignment(x: Array) -> int:
    start = address(x)
    return min(_MOST_ALIGNMENT, start & -start)


def _multiply(
    first: Array,
    second: Array,
    out: Array,
    operations: tuple[Operation, Operation],
    accumulate: bool,
    epilogue: Epilogue = Epilogue.DEFAULT,
    vector: Array | None = None,
) -> bool:
    """Write (or add) a product, as cuBLASLt sees the matrices, to `out`. Return whether `vector` has had its part."""
    if first.size == 0 or second.size == 0:
        if not accumulate:
            out[...] = 0
        return False
    if not _is_in_rows(out):
        raise ValueError(f"products are written to rows, and not to strides of {out.strides} bytes")
    if vector is None or vector.dtype != out.dtype:
        vector, epilogue = None, Epilogue.DEFAULT
    alignment = 0 if vector is None else _alignment(vector)
    product = Product(_layout(first), _layout(second), _layout(out), operations, epilogue, alignment)
    plan = _plan(device_of(out), product)
    stream = _stream()
    plan.run(first, second, out, accumulate, vector, _workspace(array_module(out), device_of(out), stream), stream)
    return plan.product.epilogue != Epilogue.DEFAULT


class _Plan:
    """A product made ready on one device. `algorithm` is None where the library has none for it."""

    def __init__(self, device: str, product: Product) -> None:
        self.product, self._made = product, list[tuple[str, ctypes.c_void_p]]()
        self._library, self._handle = cublaslt.library(), _handle(device)
        self._description = self._describe()
        self._layouts = [self._describe_layout(layout) for layout in product[:3]]
        self.algorithm = self._choose()

    def __del__(self) -> None:
        for kind, made in getattr(self, "_made", ()):
            self._library.call(f"{kind}Destroy", self.product, made)

    def _make(self, kind: str, *arguments: int) -> ctypes.c_void_p:
        made = self._library.make(f"{kind}Create", self.product, *arguments)
        self._made.append((kind, made))
        return made

    def _describe(self) -> ctypes.c_void_p:
        made = self._make("cublasLtMatmulDesc", cublaslt.COMPUTE_32F, cublaslt.DATA_TYPES[np.dtype(np.float32)])
        (first, second), epilogue = self.product.operations, self.product.epilogue
        attributes: list[tuple[MatmulAttribute, Any]] = [
            (MatmulAttribute.TRANSA, ctypes.c_int32(first)),
            (MatmulAttribute.TRANSB, ctypes.c_int32(second)),
            (MatmulAttribute.EPILOGUE, ctypes.c_uint32(epilogue)),
        ]
        if epilogue != Epilogue.DEFAULT:
            # No address yet, but one that begins where those to come will: the heuristic looks at that alone.
            attributes.append((MatmulAttribute.BIAS_POINTER, ctypes.c_void_p(self.product.alignment)))
        for attribute, value in attributes:
            self._library.set_attribute("cublasLtMatmulDescSetAttribute", self.product, made, attribute, value)
        return made

    def _describe_layout(self, layout: Layout) -> ctypes.c_void_p:
        rows, columns, stride, dtype, _ = layout
        return self._make("cublasLtMatrixLayout", cublaslt.DATA_TYPES[dtype], rows, columns, stride)

    def _choose(self) -> Algorithm | None:
        """Return what the library takes for the fastest algorithm."""
        preference = self._make("cublasLtMatmulPreference")
        first, second, out = (ctypes.c_uint32(layout.alignment) for layout in self.product[:3])
        for attribute, value in (
            (PreferenceAttribute.MAX_WORKSPACE_BYTES, ctypes.c_uint64(WORKSPACE_BYTES)),
            (PreferenceAttribute.MIN_ALIGNMENT_A_BYTES, first),
            (PreferenceAttribute.MIN_ALIGNMENT_B_BYTES, second),
            (PreferenceAttribute.MIN_ALIGNMENT_C_BYTES, out),
            (PreferenceAttribute.MIN_ALIGNMENT_D_BYTES, out),
        ):
            name = "cublasLtMatmulPreferenceSetAttribute"
            self._library.set_attribute(name, self.product, preference, attribute, value)
        result, count = HeuristicResult(), ctypes.c_int()
        name, out_layout = "cublasLtMatmulAlgoGetHeuristic", self._layouts[-1]
        status = getattr(self._library.functions, name)(
            self._handle, self._description, *self._layouts, out_layout, preference, 1, result, count
        )
        if status != cublaslt.NOT_SUPPORTED:
            self._library.check(status, name, self.product)
        return result.algorithm if status == result.state == 0 and count.value else None

    def run(
        self,
        first: Array,
        second: Array,
        out: Array,
        accumulate: bool,
        vector: Array | None,
        workspace: Array,
        stream: int,
    ) -> None:
        """Start the product of matrices that lie as planned."""
        if vector is not None and self.product.epilogue != Epilogue.DEFAULT:
            value, name = ctypes.c_void_p(address(vector)), "cublasLtMatmulDescSetAttribute"
            self._library.set_attribute(name, self.product, self._description, MatmulAttribute.BIAS_POINTER, value)
        (first_layout, second_layout, out_layout), target = self._layouts, address(out)
        self._library.call(
            "cublasLtMatmul", self.product, self._handle, self._description,
            ctypes.byref(_ONE), address(first), first_layout, address(second), second_layout,
            ctypes.byref(_ONE if accumulate else _ZERO), target, out_layout, target, out_layout,
            self.algorithm, address(workspace), WORKSPACE_BYTES, stream,
        )  # fmt: skip


@functools.lru_cache(_MOST_PLANS)
def _plan(device: str, product: Product) -> _Plan:
    """Return the plan of a product on the current device, which is `device`; without its epilogue if need be.

    Raises `RuntimeError` if the library cannot multiply such matrices.
    """
    plan = _Plan(device, product)
    if plan.algorithm is None and product.epilogue != Epilogue.DEFAULT:
        plan = _Plan(device, product._replace(epilogue=Epilogue.DEFAULT, alignment=0))
    if plan.algorithm is None:
        raise RuntimeError(f"cuBLASLt has no algorithm for {product}")
    return plan


@functools.cache
def _handle(device: str) -> ctypes.c_void_p:
    """Return the library's context on the current device, which is `device`. It stays."""
    return cublaslt.library().make("cublasLtCreate", device)


@functools.cache
def _workspace(xp: Any, device: str, stream: int) -> Array:
    """Return memory on the current device, which is `device`, for the products on one stream. It stays.

    So it is not from where this thread takes the arrays of a micro-batch, which it would cut in two.
    """
    with xp.cuda.using_allocator(xp.get_default_memory_pool().malloc):
        return xp.empty(WORKSPACE_BYTES, np.uint8)


def _stream() -> int:
    import cupy

    return cupy.cuda.get_current_stream().ptr
