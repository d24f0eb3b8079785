"""Plans for products by cuBLASLt: the candidates on a card, and the choice among them.

Candidates are the first algorithms of the library's heuristic, with the epilogue (the bias added, or its gradient
summed) fused into the product or in a kernel after it. The plan takes the first candidate, so that every run on one
kind of card gives the same bits; or, within `timed`, the fastest one, which is found once and stored (`algorithms.py`).
https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api
"""

import ctypes
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from lucid.backend import Array, address, array_module, gpu_library
from lucid.kernels.cuda import algorithms, cublaslt
from lucid.kernels.cuda.algorithms import Choice
from lucid.kernels.cuda.cublaslt import (
    Algorithm,
    Epilogue,
    HeuristicResult,
    MatmulAttribute,
    Operation,
    PreferenceAttribute,
)

# The library's memory for parts of sums, on each stream: NVIDIA recommends this size for Hopper.
WORKSPACE_BYTES = 32 * 2**20
# The number of the heuristic's algorithms to time with a fused epilogue, and again without.
TRIED = 8
# No algorithm asks for a larger alignment.
_MOST_ALIGNMENT = 256
# A training step has about 50 different products. Each number of rows to which batches are padded adds more.
_MOST_PLANS = 1024

_ZERO, _ONE = ctypes.c_float(0), ctypes.c_float(1)

_timed = False


@contextmanager
def timed() -> Iterator[None]:
    """Inside the block products use the fastest algorithm; outside they use the heuristic's first."""
    global _timed
    before, _timed = _timed, True
    try:
        yield
    finally:
        _timed = before


def are_timed() -> bool:
    """Return whether the caller is inside `timed`."""
    return _timed


def give_choices(recorded: Mapping[str, Mapping[str, Choice]], others: Mapping[str, Mapping[str, Choice]]) -> None:
    """Use these choices from now on: see `algorithms.give`."""
    algorithms.give(recorded, others)
    plan_of.cache_clear()


@functools.cache
def card_of(device: str) -> str:
    """Return the kind of card and the library's version, on which choices of algorithms depend."""
    cupy, number = gpu_library(device), int(device.partition(":")[2])
    found, version = cupy.cuda.runtime.getDeviceProperties(number), cublaslt.library().version
    processors, kind = found["multiProcessorCount"], f"sm_{found['major']}{found['minor']}"
    return f"{found['name'].decode()}, {kind}, {processors} multiprocessors, cuBLASLt {version}"


class MatrixLayout(NamedTuple):
    """The layout of a matrix as cuBLASLt sees it: our rows are its columns, which begin `stride` elements apart."""

    rows: int
    columns: int
    stride: int
    dtype: np.dtype[Any]
    alignment: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns} by {self.stride} {self.dtype} at {self.alignment}"


class Product(NamedTuple):
    """A product of two matrices with an epilogue, whose vector begins on a multiple of `alignment`."""

    first: MatrixLayout
    second: MatrixLayout
    out: MatrixLayout
    operations: tuple[Operation, Operation]
    epilogue: Epilogue
    alignment: int

    def __str__(self) -> str:
        kind = f"{self.operations[0].name}{self.operations[1].name} {self.epilogue.name} at {self.alignment}"
        return f"{kind}: {self.first}, {self.second}, {self.out}"


def layout_of(x: Array) -> MatrixLayout:
    columns, rows = x.shape
    return MatrixLayout(rows, columns, max(rows, x.strides[0] // x.itemsize), x.dtype, alignment_of(x))


def alignment_of(x: Array) -> int:
    start = address(x)
    return min(_MOST_ALIGNMENT, start & -start)


class Operands(NamedTuple):
    """The arrays and the stream of one product. `addend` may be `out`; otherwise it has the layout of `out`."""

    first: Array
    second: Array
    out: Array
    addend: Array | None
    vector: Array | None
    workspace: Array
    stream: int


class PreparedProduct:
    """A product described to the library on one device, without an algorithm."""

    def __init__(self, device: str, product: Product) -> None:
        self.product, self._made = product, list[tuple[str, ctypes.c_void_p]]()
        self.library, self.handle = cublaslt.library(), _handle(device)
        self.description = self._describe()
        self.layouts = [self._describe_layout(layout) for layout in product[:3]]

    def __del__(self) -> None:
        for kind, made in getattr(self, "_made", ()):
            self.library.call(f"{kind}Destroy", self.product, made)

    def _make(self, kind: str, *arguments: int) -> ctypes.c_void_p:
        made = self.library.make(f"{kind}Create", self.product, *arguments)
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
            # A placeholder with the alignment of the later addresses, which is all that the heuristic reads.
            attributes.append((MatmulAttribute.BIAS_POINTER, ctypes.c_void_p(self.product.alignment)))
        for attribute, value in attributes:
            self.library.set_attribute("cublasLtMatmulDescSetAttribute", self.product, made, attribute, value)
        return made

    def _describe_layout(self, layout: MatrixLayout) -> ctypes.c_void_p:
        return self._make("cublasLtMatrixLayout", cublaslt.DATA_TYPES[layout.dtype], *layout[:3])

    def algorithms(self, most: int) -> list[Algorithm]:
        """Return at most `most` algorithms, in the order of their speed as the library estimates it."""
        preference = self._make("cublasLtMatmulPreference")
        first, second, out = (ctypes.c_uint32(layout.alignment) for layout in self.product[:3])
        # Partial sums, if there are any, are float32 too.
        is_float32 = self.product.out.dtype == np.float32
        reduction = cublaslt.REDUCTION_IN_ANY_TYPE if is_float32 else cublaslt.REDUCTION_IN_COMPUTE_TYPE
        for attribute, value in (
            (PreferenceAttribute.MAX_WORKSPACE_BYTES, ctypes.c_uint64(WORKSPACE_BYTES)),
            (PreferenceAttribute.REDUCTION_SCHEME_MASK, ctypes.c_uint32(reduction)),
            (PreferenceAttribute.MIN_ALIGNMENT_A_BYTES, first),
            (PreferenceAttribute.MIN_ALIGNMENT_B_BYTES, second),
            (PreferenceAttribute.MIN_ALIGNMENT_C_BYTES, out),
            (PreferenceAttribute.MIN_ALIGNMENT_D_BYTES, out),
        ):
            name = "cublasLtMatmulPreferenceSetAttribute"
            self.library.set_attribute(name, self.product, preference, attribute, value)
        results, count = (HeuristicResult * most)(), ctypes.c_int()
        name, out_layout = "cublasLtMatmulAlgoGetHeuristic", self.layouts[-1]
        status = getattr(self.library.functions, name)(
            self.handle, self.description, *self.layouts, out_layout, preference, most, results, count
        )
        if status == cublaslt.NOT_SUPPORTED:
            return []
        self.library.check(status, name, self.product)
        return [result.algorithm for result in results[: count.value] if result.state == 0]


class Candidate(NamedTuple):
    """A product and an algorithm for it. `is_fused` says whether the product performs the epilogue itself."""

    prepared: PreparedProduct
    algorithm: Algorithm
    is_fused: bool

    def run(self, operands: Operands) -> None:
        """Start the product of matrices with the planned layouts."""
        (first, second, out, addend, vector, workspace, stream), prepared = operands, self.prepared
        if vector is not None and self.is_fused:
            value, name = ctypes.c_void_p(address(vector)), "cublasLtMatmulDescSetAttribute"
            described = prepared.product, prepared.description
            prepared.library.set_attribute(name, *described, MatmulAttribute.BIAS_POINTER, value)
        first_layout, second_layout, out_layout = prepared.layouts
        beta, source = (_ZERO, out) if addend is None else (_ONE, addend)
        factors = ctypes.byref(_ONE), address(first), first_layout, address(second), second_layout
        results = ctypes.byref(beta), address(source), out_layout, address(out), out_layout
        context = self.algorithm, address(workspace), WORKSPACE_BYTES, stream
        handles = prepared.product, prepared.handle, prepared.description
        prepared.library.call("cublasLtMatmul", *handles, *factors, *results, *context)


class Plan:
    """The candidates for a product on one device, by number, and the chosen one.

    Unless `timed` there is only one candidate. `chosen` is None until one of several is chosen.
    """

    def __init__(self, device: str, product: Product, timed: bool) -> None:
        self.product, self._device = product, device
        most = TRIED if timed else 1
        self._candidates = dict(enumerate(self._fused(most)))
        plain = product._replace(epilogue=Epilogue.DEFAULT, alignment=0)
        if product != plain and (timed or not self._candidates):
            prepared = PreparedProduct(device, plain)
            unfused = [Candidate(prepared, each, False) for each in prepared.algorithms(most)]
            self._candidates |= dict(enumerate(unfused, TRIED))
        if not self._candidates:
            raise RuntimeError(f"cuBLASLt has no algorithm for {product}")
        self.chosen = self.first if len(self._candidates) == 1 else None

    @property
    def first(self) -> Candidate:
        """The candidate that the library expects to be the fastest."""
        return next(iter(self._candidates.values()))

    def _fused(self, most: int) -> list[Candidate]:
        """Return at most `most` candidates with a fused epilogue, none if the library does not support it."""
        try:
            prepared = PreparedProduct(self._device, self.product)
            return [Candidate(prepared, each, True) for each in prepared.algorithms(most)]
        except RuntimeError:
            if self.product.epilogue == Epilogue.DEFAULT:
                raise
            return []

    def choose(self, operands: Operands, fallback: Callable[[], object]) -> Candidate:
        """Choose a candidate for all later products: the one stored before, or the fastest with these operands.

        Nothing can be timed while the stream captures: without a stored choice this returns the first candidate, and
        stores nothing.
        """
        is_capturing = _is_capturing()
        timing = None if is_capturing else functools.partial(self._seconds, operands, fallback)
        number = algorithms.chosen(card_of(self._device), str(self.product), timing)
        candidate = self.first if number is None else self._candidates.get(number, self.first)
        if number is not None or not is_capturing:
            self.chosen = candidate
        return candidate

    def _seconds(self, operands: Operands, fallback: Callable[[], object]) -> dict[int, float]:
        """Return the seconds of each candidate, by number; nothing if the GPU has no memory for the measurement.

        The measurement does not change an `out` to which the product adds.
        """
        import cupy

        for _ in range(2):
            # A pool of its own, whose memory returns to the card: not the steps' memory, nor the graphs'.
            pool = cupy.cuda.MemoryPool()
            try:
                with cupy.cuda.using_allocator(pool.malloc):
                    return self._timed(operands, fallback)
            except cupy.cuda.memory.OutOfMemoryError:
                cupy.get_default_memory_pool().free_all_blocks()
            finally:
                pool.free_all_blocks()
        return {}

    def _timed(self, operands: Operands, fallback: Callable[[], object]) -> dict[int, float]:
        if operands.addend is operands.out:
            other = _empty_like(operands.out)
            operands = operands._replace(out=other, addend=other)

        def do(candidate: Candidate) -> None:
            candidate.run(operands)
            if not candidate.is_fused:
                fallback()

        works = [functools.partial(do, each) for each in self._candidates.values()]
        return dict(zip(self._candidates, algorithms.seconds_of(works), strict=True))


def _empty_like(x: Array) -> Array:
    """Return an uninitialised array with the layout of x."""
    return array_module(x).empty((len(x), layout_of(x).stride), x.dtype)[:, : x.shape[1]]


@functools.lru_cache(_MOST_PLANS)
def plan_of(device: str, product: Product, timed: bool) -> Plan:
    """Return the plan of a product on the current device, which is `device`; see `Plan` for `timed`.

    Raises `RuntimeError` if the library cannot multiply such matrices.
    """
    return Plan(device, product, timed)


@functools.cache
def _handle(device: str) -> ctypes.c_void_p:
    """Return the library's context on the current device, which is `device`. It is never freed."""
    return cublaslt.library().make("cublasLtCreate", device)


@functools.cache
def workspace_of(xp: Any, device: str, stream: int) -> Array:
    """Return memory on the current device, which is `device`, for the products on one stream. It is never freed.

    Therefore it does not come from this thread's pool for the arrays of a micro-batch, which it would fragment.
    """
    with xp.cuda.using_allocator(xp.get_default_memory_pool().malloc):
        return xp.empty(WORKSPACE_BYTES, np.uint8)


def _is_capturing() -> bool:
    import cupy

    return cupy.cuda.get_current_stream().is_capturing()
