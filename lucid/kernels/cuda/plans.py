"""How cuBLASLt makes a product: the ways there are on a card, and the one that is taken.

There are several: the first algorithms of the library's heuristic, with what is done with the vector (the bias added,
or its gradient summed) by the product itself, or beside it. The first of them is taken, so that every run on one kind
of card gives the same bits; or, within `timed`, the fastest, which is found once and kept (`algorithms.py`).
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

# What the library may keep parts of sums in, on each stream: NVIDIA's advice for Hopper.
WORKSPACE_BYTES = 32 * 2**20
# So many of the heuristic's algorithms are timed, with what is done with the vector, and so many without.
TRIED = 8
# No algorithm asks for matrices that begin on multiples of more.
_MOST_ALIGNMENT = 256
# A training step has about 50 different products. Each number of rows that batches are padded to makes new ones.
_MOST_PLANS = 1024

_ZERO, _ONE = ctypes.c_float(0), ctypes.c_float(1)

_timed = False


@contextmanager
def timed() -> Iterator[None]:
    """Inside the block, make products by the fastest algorithm; outside they are made by the heuristic's first."""
    global _timed
    before, _timed = _timed, True
    try:
        yield
    finally:
        _timed = before


def are_timed() -> bool:
    """Return whether this is inside of `timed`."""
    return _timed


def give_choices(recorded: Mapping[str, Mapping[str, Choice]], others: Mapping[str, Mapping[str, Choice]]) -> None:
    """Let these choices hold from now on: see `algorithms.give`."""
    algorithms.give(recorded, others)
    plan_of.cache_clear()


@functools.cache
def card_of(device: str) -> str:
    """Return what choices of algorithms depend on, beside the product: the kind of card, and the library's version."""
    cupy, number = gpu_library(device), int(device.partition(":")[2])
    found, version = cupy.cuda.runtime.getDeviceProperties(number), cublaslt.library().version
    processors, kind = found["multiProcessorCount"], f"sm_{found['major']}{found['minor']}"
    return f"{found['name'].decode()}, {kind}, {processors} multiprocessors, cuBLASLt {version}"


class MatrixLayout(NamedTuple):
    """How a matrix of ours lies in memory, as cuBLASLt sees it: its rows are columns, `stride` elements apart."""

    rows: int
    columns: int
    stride: int
    dtype: np.dtype[Any]
    alignment: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns} by {self.stride} {self.dtype} at {self.alignment}"


class Product(NamedTuple):
    """A product of two matrices, and what is done with the vector that goes with it, which begins on `alignment`."""

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
    """What a product is made of and where, now: `addend` may be `out`, or lies as `out` does."""

    first: Array
    second: Array
    out: Array
    addend: Array | None
    vector: Array | None
    workspace: Array
    stream: int


class Form:
    """A product made ready on one device, but for the algorithm."""

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
            # No address yet, but one that begins where those to come will: the heuristic looks at that alone.
            attributes.append((MatmulAttribute.BIAS_POINTER, ctypes.c_void_p(self.product.alignment)))
        for attribute, value in attributes:
            self.library.set_attribute("cublasLtMatmulDescSetAttribute", self.product, made, attribute, value)
        return made

    def _describe_layout(self, layout: MatrixLayout) -> ctypes.c_void_p:
        return self._make("cublasLtMatrixLayout", cublaslt.DATA_TYPES[layout.dtype], *layout[:3])

    def algorithms(self, most: int) -> list[Algorithm]:
        """Return what the library takes for the fastest algorithms, at most so many, the fastest first."""
        preference = self._make("cublasLtMatmulPreference")
        first, second, out = (ctypes.c_uint32(layout.alignment) for layout in self.product[:3])
        # Where sums are made in parts, these are float32 as well.
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


class Way(NamedTuple):
    """A form of a product and an algorithm for it. `is_whole` says whether it does with the vector what is asked."""

    form: Form
    algorithm: Algorithm
    is_whole: bool

    def run(self, operands: Operands) -> None:
        """Start the product of matrices that lie as planned."""
        (first, second, out, addend, vector, workspace, stream), form = operands, self.form
        if vector is not None and self.is_whole:
            value, name = ctypes.c_void_p(address(vector)), "cublasLtMatmulDescSetAttribute"
            form.library.set_attribute(name, form.product, form.description, MatmulAttribute.BIAS_POINTER, value)
        first_layout, second_layout, out_layout = form.layouts
        beta, source = (_ZERO, out) if addend is None else (_ONE, addend)
        factors = ctypes.byref(_ONE), address(first), first_layout, address(second), second_layout
        results = ctypes.byref(beta), address(source), out_layout, address(out), out_layout
        context = self.algorithm, address(workspace), WORKSPACE_BYTES, stream
        handles = form.product, form.handle, form.description
        form.library.call("cublasLtMatmul", *handles, *factors, *results, *context)


class Plan:
    """How a product is made on one device: the ways that there are, by number, and the one that is taken.

    There is one way alone unless `timed`. `way` is None until one of several is chosen.
    """

    def __init__(self, device: str, product: Product, timed: bool) -> None:
        self.product, self._device = product, device
        most = TRIED if timed else 1
        self._ways = dict(enumerate(self._whole(most)))
        plain = product._replace(epilogue=Epilogue.DEFAULT, alignment=0)
        if product != plain and (timed or not self._ways):
            form = Form(device, plain)
            self._ways |= {TRIED + number: Way(form, each, False) for number, each in enumerate(form.algorithms(most))}
        if not self._ways:
            raise RuntimeError(f"cuBLASLt has no algorithm for {product}")
        self.way = self.first if len(self._ways) == 1 else None

    @property
    def first(self) -> Way:
        """The way that the library takes for the fastest."""
        return next(iter(self._ways.values()))

    def _whole(self, most: int) -> list[Way]:
        """Return at most so many ways that do with the vector what is asked, none where the library refuses that."""
        try:
            form = Form(self._device, self.product)
            return [Way(form, each, True) for each in form.algorithms(most)]
        except RuntimeError:
            if self.product.epilogue == Epilogue.DEFAULT:
                raise
            return []

    def choose(self, operands: Operands, beside: Callable[[], object]) -> Way:
        """Return the way to go from now on: the one that was chosen before, or the fastest with these operands.

        While the stream captures, nothing can be timed: without a choice the first way is taken, and nothing is kept.
        """
        is_capturing = _is_capturing()
        timing = None if is_capturing else functools.partial(self._seconds, operands, beside)
        number = algorithms.chosen(card_of(self._device), str(self.product), timing)
        way = self.first if number is None else self._ways.get(number, self.first)
        if number is not None or not is_capturing:
            self.way = way
        return way

    def _seconds(self, operands: Operands, beside: Callable[[], object]) -> dict[int, float]:
        """Return how long each way takes, by number; nothing if there is no room to find that out.

        What is in `out` stays if it is to be added to.
        """
        import cupy

        for _ in range(2):
            # Memory that goes back to the card: none of what is kept for the steps, or for graphs.
            pool = cupy.cuda.MemoryPool()
            try:
                with cupy.cuda.using_allocator(pool.malloc):
                    return self._timed(operands, beside)
            except cupy.cuda.memory.OutOfMemoryError:
                cupy.get_default_memory_pool().free_all_blocks()
            finally:
                pool.free_all_blocks()
        return {}

    def _timed(self, operands: Operands, beside: Callable[[], object]) -> dict[int, float]:
        if operands.addend is operands.out:
            other = _alike(operands.out)
            operands = operands._replace(out=other, addend=other)

        def do(way: Way) -> None:
            way.run(operands)
            if not way.is_whole:
                beside()

        works = [functools.partial(do, way) for way in self._ways.values()]
        return dict(zip(self._ways, algorithms.seconds_of(works), strict=True))


def _alike(x: Array) -> Array:
    """Return an array whose rows lie as those of x do."""
    return array_module(x).empty((len(x), layout_of(x).stride), x.dtype)[:, : x.shape[1]]


@functools.lru_cache(_MOST_PLANS)
def plan_of(device: str, product: Product, timed: bool) -> Plan:
    """Return the plan of a product on the current device, which is `device`, with one way or with several to time.

    Raises `RuntimeError` if the library cannot multiply such matrices.
    """
    return Plan(device, product, timed)


@functools.cache
def _handle(device: str) -> ctypes.c_void_p:
    """Return the library's context on the current device, which is `device`. It stays."""
    return cublaslt.library().make("cublasLtCreate", device)


@functools.cache
def workspace_of(xp: Any, device: str, stream: int) -> Array:
    """Return memory on the current device, which is `device`, for the products on one stream. It stays.

    So it is not from where this thread takes the arrays of a micro-batch, which it would cut in two.
    """
    with xp.cuda.using_allocator(xp.get_default_memory_pool().malloc):
        return xp.empty(WORKSPACE_BYTES, np.uint8)


def _is_capturing() -> bool:
    import cupy

    return cupy.cuda.get_current_stream().is_capturing()
