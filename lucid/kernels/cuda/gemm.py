"""Products of linear layers by cuBLASLt, in float32 or bfloat16, accumulated in float32.

cuBLASLt's matrices are in column order, so it sees our matrices in row order as their transposes. We therefore ask for
the transpose of each product, whose columns the bias is added to. A matrix may be some columns of a wider one.

After its first time a product is one call on CuPy's current stream, and can be captured. See `plans.py`.
"""

import functools
import operator
from collections.abc import Callable

from lucid.backend import Array, array_module, device_of
from lucid.kernels.cuda.arrays import empty, plain
from lucid.kernels.cuda.casting import BFLOAT16, round_to_bfloat16
from lucid.kernels.cuda.cublaslt import Epilogue, Operation
from lucid.kernels.cuda.plans import Operands, Product, alignment_of, are_timed, layout_of, plan_of, workspace_of
from lucid.kernels.cuda.sums import linear_bias_gradient
from lucid.kernels.targets import Target, put


def linear(x: Array, weight: Array, bias: Array | None, out: Array | None = None) -> Array:
    rows, factor = _operands(x, weight)
    y = empty(x, len(rows), len(weight), dtype=x.dtype) if out is None else out
    if bias is not None:
        bias = round_to_bfloat16(bias) if y.dtype == BFLOAT16 != bias.dtype else plain(bias, y.dtype)
    fallback = None if bias is None else functools.partial(operator.iadd, y, bias)
    _multiply(factor, rows, y, None, (Operation.T, Operation.N), Epilogue.BIAS, bias, fallback)
    return y.reshape(*x.shape[:-1], len(weight)) if out is None else out


def linear_input_gradient(
    gradient: Array, weight: Array, addend: Array | None = None, out: Array | None = None
) -> Array:
    rows, factor = _operands(gradient, weight)
    y = empty(gradient, *gradient.shape[:-1], weight.shape[1], dtype=gradient.dtype) if out is None else out
    shape = len(rows), weight.shape[1]
    matrix = y.reshape(shape)
    if addend is not None:
        addend = matrix if addend is y else addend.reshape(shape)
    _multiply(factor, rows, matrix, addend, (Operation.N, Operation.N))
    return y


def linear_weight_gradient(gradient: Array, x: Array, by_weight: Target, by_bias: Target | None = None) -> None:
    rows, factor = _operands(gradient, x)
    (out, accumulate), operations = by_weight, (Operation.N, Operation.T)
    addend = out if accumulate else None
    if by_bias is None:
        _multiply(factor, rows, out, addend, operations)
        return
    # The epilogue writes the sums, and cannot add them.
    sums = array_module(x).empty_like(by_bias.out) if by_bias.accumulate else by_bias.out
    sum_after = functools.partial(linear_bias_gradient, gradient, Target(sums, False))
    _multiply(factor, rows, out, addend, operations, Epilogue.BGRADB, sums, sum_after)
    if by_bias.accumulate:
        put(sums, by_bias)


def _operands(x: Array, y: Array) -> tuple[Array, Array]:
    """Return two arrays as matrices in row order of one dtype: bfloat16 if one of them has it."""
    if x.dtype != y.dtype:
        x, y = (array if array.dtype == BFLOAT16 else round_to_bfloat16(array) for array in (x, y))
    return _matrix(x), _matrix(y)


def _matrix(x: Array) -> Array:
    """Return x [..., C] as [N, C] in row order, without a copy if it is some columns of an array in C order."""
    matrix = x if x.ndim == 2 else plain(x).reshape(-1, x.shape[-1])
    return matrix if _is_in_rows(matrix) else plain(matrix)


def _is_in_rows(x: Array) -> bool:
    (rows, width), (stride, step) = x.shape, x.strides
    return (width == 1 or step == x.itemsize) and (rows == 1 or stride >= width * x.itemsize)


def _multiply(
    first: Array,
    second: Array,
    out: Array,
    addend: Array | None,
    operations: tuple[Operation, Operation],
    epilogue: Epilogue = Epilogue.DEFAULT,
    vector: Array | None = None,
    fallback: Callable[[], object] | None = None,
) -> None:
    """Write a product, as cuBLASLt sees the matrices, plus `addend` to `out`, with `vector` in the epilogue.

    `addend` is None, `out` itself, or another matrix of its shape. If no algorithm supports the epilogue, `fallback`
    does its work after the product; timing may call `fallback` several times.
    """
    fallback = fallback if vector is not None and fallback is not None else _nothing
    if first.size == 0 or second.size == 0:
        if addend is not out:
            out[...] = 0 if addend is None else addend
        fallback()
        return
    if not _is_in_rows(out):
        raise ValueError(f"products need an output in row order, not with strides of {out.strides} bytes")
    fits = vector is not None and vector.dtype == out.dtype
    if not fits:
        vector, epilogue = None, Epilogue.DEFAULT
    alignment = 0 if vector is None else alignment_of(vector)
    product = Product(layout_of(first), layout_of(second), layout_of(out), operations, epilogue, alignment)
    plan, stream = plan_of(device_of(out), product, are_timed()), _stream()
    workspace = workspace_of(array_module(out), device_of(out), stream)
    if addend is not None and addend is not out and not _has_same_layout(addend, out):
        out[...] = addend
        addend = out
    operands = Operands(first, second, out, addend, vector, workspace, stream)
    chosen = plan.chosen or plan.choose(operands, fallback)
    chosen.run(operands)
    if not (fits and chosen.is_fused):
        fallback()


def _has_same_layout(x: Array, out: Array) -> bool:
    """Return whether x has the layout of `out`, so that the library can read it as an addend."""
    return _is_in_rows(x) and layout_of(x)[:4] == layout_of(out)[:4] and alignment_of(x) >= alignment_of(out)


def _nothing() -> None:
    pass


def _stream() -> int:
    import cupy

    return cupy.cuda.get_current_stream().ptr
