"""CuPy on a machine without a GPU: what lucid uses of it, on NumPy, with a GPU's rules.

For benchmarks/gpu_launches.py, which goes through a step and does nothing of it: arrays that nobody touches may be of
any size. Names, signatures and errors are those of CuPy 14.2. `cupy.emulation` is what CuPy has not.
"""

from numpy import (
    bool_,
    dtype,
    e,
    finfo,
    float16,
    float32,
    float64,
    iinfo,
    inf,
    int8,
    int16,
    int32,
    int64,
    nan,
    newaxis,
    pi,
    result_type,
    uint8,
    uint16,
    uint32,
    uint64,
)

from cupy import cuda, emulation, lib
from cupy._array import ndarray
from cupy._functions import MADE as _MADE
from cupy._functions import (
    arange,
    argmax,
    argmin,
    argsort,
    array,
    asarray,
    ascontiguousarray,
    asnumpy,
    copyto,
    empty,
    empty_like,
    eye,
    full,
    full_like,
    get_array_module,
    isscalar,
    linspace,
    may_share_memory,
    ndim,
    nonzero,
    ones,
    shape,
    shares_memory,
    size,
    take,
    take_along_axis,
    ufunc,
    zeros,
)

globals().update(_MADE)

__version__ = "14.2.0"


def get_default_memory_pool() -> cuda.MemoryPool:
    return cuda.memory._default_pool
