"""oneDNN's matrix product, called through its C interface.

The wheel `onednn-cpu-gomp` has the library, and the first product loads it. Each product runs on one thread; callers
divide the work. Transposes are strides: no matrix is reordered first.
"""

import ctypes
import functools
import importlib.metadata
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lucid.backend import Array
from lucid.errors import ConfigError
from lucid.kernels.signal_stack import use_signal_stack

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
WHEEL = "onednn-cpu-gomp"

# Constants of the C interface: dnnl_data_type_t, the arguments of a product, dnnl_cpu_isa_t, and others.
_DATA_TYPES = {BFLOAT16: 2, np.dtype(np.float32): 3}
_LEFT, _RIGHT, _OUT, _BIAS, _SCRATCH = 1, 33, 17, 41, 80
_BFLOAT16_INSTRUCTIONS = 0x80
_CPU, _IN_ORDER, _STRICT = 1, 1, 0
_UNIMPLEMENTED = 3
_SCRATCH_OF_CALLER, _SCRATCH_DESCRIPTION = 1, 136
# A training step has about 50 different products. Each new number of rows or of masked positions, and in attention each
# new length of a sequence, adds more. Compiling one takes half a millisecond.
MOST_PRODUCTS = 1024
# What a product occupies, with what each thread that runs it adds: 40 to 135 KB were measured, and 1 to 5 KB a thread.
PRODUCT_BYTES = 150_000
# Threads often need the same new product at once. oneDNN's own cache lets one of them compile it, and the others wait.
_BEING_COMPILED = 64
_CACHE_LINE = 64
_LOADING = threading.Lock()


class Unimplemented(Exception):  # noqa: N818  # not an error yet: the caller has another way
    """oneDNN has no such product on this processor."""


class _Argument(ctypes.Structure):
    _fields_ = (("number", ctypes.c_int), ("memory", ctypes.c_void_p))


class _Strided(NamedTuple):
    """The layout of an array in memory; strides are in bytes."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


class _Library:
    """The loaded library, and its engine, which all threads share."""

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))
        number, scale = ctypes.c_int, ctypes.c_float
        self.functions.dnnl_post_ops_append_sum.argtypes = [ctypes.c_void_p, scale, ctypes.c_int32, number]
        self.functions.dnnl_primitive_desc_query_md.restype = ctypes.c_void_p
        self.functions.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
        self.call("dnnl_set_primitive_cache_capacity", _BEING_COMPILED)
        self.engine = self.make("dnnl_engine_create", _CPU, ctypes.c_size_t(0))
        # PyDLL: the call is short, so it does not release the GIL, which it would have to wait for afterwards.
        self.set_address = ctypes.PyDLL(str(path)).dnnl_memory_set_data_handle
        self.set_address.argtypes = [ctypes.c_void_p, ctypes.c_void_p]

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function. Raises `Unimplemented`, or `RuntimeError` for any other failure."""
        status = getattr(self.functions, name)(*arguments)
        if status == _UNIMPLEMENTED:
            raise Unimplemented(name)
        if status:
            raise RuntimeError(f"oneDNN's {name} ended with status {status}")

    def make(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """Call a function that creates an object, and return the object."""
        made = ctypes.c_void_p()
        self.call(name, ctypes.byref(made), *arguments)
        return made


class _Call:
    """What a thread passes to oneDNN when it runs a product; one thread at a time uses it."""

    def __init__(self, library: _Library, descriptors: dict[int, ctypes.c_void_p]) -> None:
        """Make memory objects for arrays with `descriptors`, by the numbers of the product's arguments."""
        self._library = library
        self._memories = [
            library.make("dnnl_memory_create", descriptor, library.engine, None) for descriptor in descriptors.values()
        ]
        pairs = zip(descriptors, self._memories, strict=True)
        self._arguments = (_Argument * len(descriptors))(*(_Argument(number, memory) for number, memory in pairs))

    def run(self, primitive: ctypes.c_void_p, stream: ctypes.c_void_p, addresses: Sequence[int]) -> None:
        """Run a product on the arrays at `addresses`, in the order of the descriptors."""
        for memory, address in zip(self._memories, addresses, strict=True):
            self._library.set_address(memory, address)
        self._library.call("dnnl_primitive_execute", primitive, stream, len(addresses), self._arguments)
        self._library.call("dnnl_stream_wait", stream)

    def __del__(self) -> None:
        for memory in getattr(self, "_memories", ()):
            self._library.call("dnnl_memory_destroy", memory)


class _Product:
    """A product that oneDNN has compiled for arrays of one layout in memory. Several threads may run it at once.

    The caller of oneDNN owns the scratch memory. A product of oneDNN's with its own could serve one thread only.
    """

    def __init__(
        self,
        library: _Library,
        left: _Strided,
        right: _Strided,
        out: _Strided,
        bias: _Strided | None,
        accumulate: bool,
    ) -> None:
        self._library = library
        layouts = {_LEFT: left, _RIGHT: right, _OUT: out} | ({_BIAS: bias} if bias else {})
        self._descriptors = {number: self._describe(layout) for number, layout in layouts.items()}
        attributes = self._attributes(accumulate)
        of_arrays = (self._descriptors.get(number) for number in (_LEFT, _RIGHT, _BIAS, _OUT))
        try:
            product = library.make("dnnl_matmul_primitive_desc_create", library.engine, *of_arrays, attributes)
        finally:
            library.call("dnnl_primitive_attr_destroy", attributes)
        self._primitive = library.make("dnnl_primitive_create", product)
        scratch = self._scratch_of(product)
        self._scratch_bytes = library.functions.dnnl_memory_desc_get_size(scratch)
        if self._scratch_bytes:  # a product that needs none refuses some
            self._descriptors[_SCRATCH] = library.make("dnnl_memory_desc_clone", scratch)
        library.call("dnnl_primitive_desc_destroy", product)
        # Those that no thread uses at the moment.
        self._calls: list[_Call] = []

    def _scratch_of(self, product: ctypes.c_void_p) -> ctypes.c_void_p:
        query = self._library.functions.dnnl_primitive_desc_query_md
        return ctypes.c_void_p(query(product, _SCRATCH_DESCRIPTION, 0))

    def _describe(self, layout: _Strided) -> ctypes.c_void_p:
        dimensions = len(layout.shape)
        numbers = ctypes.c_int64 * dimensions
        shape, strides = numbers(*layout.shape), numbers(*(each // layout.dtype.itemsize for each in layout.strides))
        name = "dnnl_memory_desc_create_with_strides"
        return self._library.make(name, dimensions, shape, _DATA_TYPES[layout.dtype], strides)

    def _attributes(self, accumulate: bool) -> ctypes.c_void_p:
        library = self._library
        attributes = library.make("dnnl_primitive_attr_create")
        # Without this an environment variable of oneDNN could lower the precision of float32 products.
        library.call("dnnl_primitive_attr_set_fpmath_mode", attributes, _STRICT)
        library.call("dnnl_primitive_attr_set_scratchpad_mode", attributes, _SCRATCH_OF_CALLER)
        if accumulate:
            following = library.make("dnnl_post_ops_create")
            library.call("dnnl_post_ops_append_sum", following, 1.0, 0, 0)
            library.call("dnnl_primitive_attr_set_post_ops", attributes, following)
            library.call("dnnl_post_ops_destroy", following)
        return attributes

    def run(self, stream: ctypes.c_void_p, thread: "_Thread", *arrays: Array) -> None:
        """Compute the product on this thread. The arrays have the order of the constructor's layouts."""
        try:
            call = self._calls.pop()
        except IndexError:
            call = _Call(self._library, self._descriptors)
        addresses = [array.__array_interface__["data"][0] for array in arrays]
        if self._scratch_bytes:
            addresses.append(thread.scratch(self._scratch_bytes))
        call.run(self._primitive, stream, addresses)
        self._calls.append(call)

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            self._library.call("dnnl_memory_desc_destroy", descriptor)
        if hasattr(self, "_primitive"):
            self._library.call("dnnl_primitive_destroy", self._primitive)


class _Thread(threading.local):
    """What a thread needs for products: a stream of oneDNN's, and scratch memory."""

    def __init__(self, library: _Library) -> None:
        # Products compiled for AVX2 point the stack pointer into scratch memory. A signal handler that ran there would
        # overwrite the memory below.
        use_signal_stack()
        # OpenMP keeps this number per calling thread.
        library.functions.omp_set_num_threads(1)
        self.stream = library.make("dnnl_stream_create", library.engine, _IN_ORDER)
        self._scratch, self._address = np.empty(0, np.uint8), 0

    def scratch(self, size: int) -> int:
        """Return the address of `size` bytes, whose content the next call may overwrite."""
        if len(self._scratch) < size + _CACHE_LINE:
            self._scratch = np.empty(size + _CACHE_LINE, np.uint8)
            self._address = -(-self._scratch.ctypes.data // _CACHE_LINE) * _CACHE_LINE
        return self._address


@functools.cache
def is_installed() -> bool:
    """Return whether the wheel is installed, without loading the library."""
    return _path() is not None


def _path() -> Path | None:
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())).resolve() for file in files if file.name == "libdnnl.so.3"]
    return paths[0] if paths else None


def _library() -> _Library:
    """Return the library, with the one engine that products and streams of all threads need to have in common."""
    with _LOADING:  # threads ask for it at once
        return _load()


@functools.cache
def _load() -> _Library:
    path = _path()
    if path is None:
        raise ConfigError(f"oneDNN is not installed: pip install {WHEEL}")
    try:
        return _Library(path)
    except (OSError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"oneDNN is installed but cannot be loaded ({error}): install what is missing (libgomp is the package "
            f"libgomp1 of Debian and Ubuntu), or do without it: pip uninstall {WHEEL}"
        ) from error


@functools.cache
def _thread() -> _Thread:
    return _Thread(_library())


@functools.lru_cache(MOST_PRODUCTS)
def _product(left: _Strided, right: _Strided, out: _Strided, bias: _Strided | None, accumulate: bool) -> _Product:
    return _Product(_library(), left, right, out, bias, accumulate)


def multiply(left: Array, right: Array, out: Array, bias: Array | None = None, accumulate: bool = False) -> None:
    """Write (or add) left [M, K] times right [K, N], plus bias [N], to out [M, N], on this thread.

    left and right are both float32 or both bfloat16, with any strides but 0; bias and the accumulation are float32; out
    is float32, or bfloat16 if the factors are. No dimension may be 0. Raises `Unimplemented`, and `ConfigError` if
    oneDNN cannot be loaded.
    """
    arrays = [left, right, out] + ([] if bias is None else [bias[None]])
    layouts = [_layout(array) for array in arrays] + ([None] if bias is None else [])
    thread = _thread()
    stream = thread.stream  # on each thread first: a product is compiled for the number of threads that it sets
    _product(*layouts, accumulate).run(stream, thread, *arrays)


def _layout(array: Array) -> _Strided:
    return _Strided(array.shape, array.strides, array.dtype)


def has_bfloat16_instructions() -> bool:
    """Return whether this processor has bfloat16 instructions."""
    return bool(_instructions() & _BFLOAT16_INSTRUCTIONS)


def name() -> str:
    """Return the library's name, its version, and its number for the instruction set in use."""

    class Version(ctypes.Structure):
        _fields_ = (("major", ctypes.c_int), ("minor", ctypes.c_int), ("patch", ctypes.c_int))

    query = _library().functions.dnnl_version
    query.restype = ctypes.POINTER(Version)
    version = query().contents
    return f"oneDNN {version.major}.{version.minor}.{version.patch} {_instructions():#x}"


def _instructions() -> int:
    return int(_library().functions.dnnl_get_effective_cpu_isa())
