"""cuBLASLt's C interface, as far as a matrix product needs it.

The library is in NVIDIA's wheel of cuBLAS (extras `cuda12`, `cuda13`) or in the system's CUDA; the first product loads
it. This file has the types of all functions in use; tests compare constants and structures with `cublasLt.h`.
"""

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lucid.errors import ConfigError


class Operation(IntEnum):
    """cublasOperation_t: what happens to a matrix before the product."""

    N = 0
    T = 1


class MatmulAttribute(IntEnum):
    """cublasLtMatmulDescAttributes_t."""

    TRANSA = 3
    TRANSB = 4
    EPILOGUE = 7
    BIAS_POINTER = 8


class Epilogue(IntEnum):
    """cublasLtEpilogue_t: a bias added to each column of the product, or sums of the second factor's columns."""

    DEFAULT = 1
    BIAS = 4
    BGRADB = 512


class PreferenceAttribute(IntEnum):
    """cublasLtMatmulPreferenceAttributes_t."""

    MAX_WORKSPACE_BYTES = 1
    REDUCTION_SCHEME_MASK = 3
    MIN_ALIGNMENT_A_BYTES = 5
    MIN_ALIGNMENT_B_BYTES = 6
    MIN_ALIGNMENT_C_BYTES = 7
    MIN_ALIGNMENT_D_BYTES = 8


class Algorithm(ctypes.Structure):
    """cublasLtMatmulAlgo_t."""

    _fields_ = (("data", ctypes.c_uint64 * 8),)


class HeuristicResult(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", Algorithm),
        ("workspace_bytes", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


# cublasComputeType_t: float32 is not reduced to TF32; bfloat16 accumulates in float32.
COMPUTE_32F = 68
# cudaDataType.
DATA_TYPES = {np.dtype(np.float32): 0, np.dtype(ml_dtypes.bfloat16): 14}
# cublasLtReductionScheme_t: partial sums have the type of the accumulation only, or also the type of the product.
REDUCTION_IN_COMPUTE_TYPE, REDUCTION_IN_ANY_TYPE = 2, 7
# cublasStatus_t: no algorithm supports the request.
NOT_SUPPORTED = 15

# Objects of the library, and addresses in host or device memory, are passed as such; new objects return by reference.
_ADDRESS, _MADE, _NUMBER, _SIZE = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, ctypes.c_size_t
_SET_ATTRIBUTE = _ADDRESS, _NUMBER, _ADDRESS, _SIZE

_HEURISTIC = *(_ADDRESS,) * 7, _NUMBER, ctypes.POINTER(HeuristicResult), ctypes.POINTER(_NUMBER)
# The handle and the description; a factor and two matrices; a factor, the addend and the result; algorithm and memory.
_MATMUL = *(_ADDRESS,) * 12, ctypes.POINTER(Algorithm), _ADDRESS, _SIZE, _ADDRESS

# The functions that return a status, with the types of their parameters.
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cublasLtCreate": (_MADE,),
    "cublasLtMatmulDescCreate": (_MADE, _NUMBER, _NUMBER),
    "cublasLtMatmulDescSetAttribute": _SET_ATTRIBUTE,
    "cublasLtMatmulDescDestroy": (_ADDRESS,),
    "cublasLtMatrixLayoutCreate": (_MADE, _NUMBER, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64),
    "cublasLtMatrixLayoutDestroy": (_ADDRESS,),
    "cublasLtMatmulPreferenceCreate": (_MADE,),
    "cublasLtMatmulPreferenceSetAttribute": _SET_ATTRIBUTE,
    "cublasLtMatmulPreferenceDestroy": (_ADDRESS,),
    "cublasLtMatmulAlgoGetHeuristic": _HEURISTIC,
    "cublasLtMatmul": _MATMUL,
}


class Library:
    """The loaded library: `functions` has the functions of `FUNCTIONS`, with their types."""

    def __init__(self, path: str) -> None:
        self.functions = ctypes.CDLL(path)
        for name, types in FUNCTIONS.items():
            function = getattr(self.functions, name)
            function.argtypes, function.restype = types, ctypes.c_int
        self.functions.cublasLtGetStatusString.argtypes = (ctypes.c_int,)
        self.functions.cublasLtGetStatusString.restype = ctypes.c_char_p
        self.functions.cublasLtGetVersion.argtypes = ()
        self.functions.cublasLtGetVersion.restype = ctypes.c_size_t

    def check(self, status: int, name: str, subject: object) -> None:
        """Raise `RuntimeError`, which names the function and the subject of the call, unless the status is success."""
        if status:
            reason = self.functions.cublasLtGetStatusString(status).decode()
            raise RuntimeError(f"{name} ended with status {status} ({reason}) for {subject}")

    def call(self, name: str, subject: object, *arguments: Any) -> None:
        """Call a function for `subject`, which errors name."""
        self.check(getattr(self.functions, name)(*arguments), name, subject)

    def make(self, name: str, subject: object, *arguments: Any) -> ctypes.c_void_p:
        """Call a function that creates an object, and return the object."""
        made = ctypes.c_void_p()
        self.call(name, subject, ctypes.byref(made), *arguments)
        return made

    def set_attribute(self, name: str, subject: object, made: ctypes.c_void_p, attribute: int, value: Any) -> None:
        """Set an attribute of one of the library's objects to the ctypes `value`."""
        self.call(name, subject, made, attribute, ctypes.byref(value), ctypes.sizeof(value))

    @property
    def version(self) -> int:
        """The library's version: 130100 is 13.1.0."""
        return int(self.functions.cublasLtGetVersion())


def library() -> Library:
    """Return the library for CuPy's version of CUDA. Raises `ConfigError` if it cannot be loaded."""
    import cupy

    return load(cupy.cuda.runtime.runtimeGetVersion() // 1000)


@functools.cache
def load(major: int) -> Library:
    """Return the library for CUDA 12 or 13, from the wheel if it is installed, or else from the system.

    Raises `ConfigError` if it cannot be loaded.
    """
    name = f"libcublasLt.so.{major}"
    try:
        return Library(next(_in_wheels(name), name))
    except (OSError, AttributeError) as error:
        raise ConfigError(
            f"matrix products on a GPU need cuBLASLt, which cannot be loaded ({error}): "
            f"pip install 'lucid-bert[cuda{major}]', or let LD_LIBRARY_PATH lead to {name}"
        ) from error


def _in_wheels(name: str) -> Iterator[str]:
    spec = importlib.util.find_spec("nvidia")
    for root in (spec and spec.submodule_search_locations) or ():
        for folder in ("cu13", "cublas"):
            path = Path(root, folder, "lib", name)
            if path.exists():
                yield str(path)
