"""Fused kernels: the choice of an implementation of the catalogue for an array's device and dtype."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import ml_dtypes
import numpy as np

from lucid.backend import CPU, Array, array_module
from lucid.errors import ConfigError
from lucid.kernels import reference, threads
from lucid.kernels.catalogue import Kernels
from lucid.kernels.catalogue.elementwise import Activation
from lucid.kernels.catalogue.gemm import Products

__all__ = [
    "Activation",
    "Kernels",
    "Precision",
    "Products",
    "check_gpu_kernels",
    "choices_kept",
    "of",
    "product_library",
    "products_of",
    "set_precision",
    "timed_products",
]

Precision = Literal["float32", "bfloat16"]

# The dtypes that have compiled kernels.
_COMPILED = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)

# The precision chosen last.
_precision: Precision = "float32"


def of(array: Array) -> Kernels:
    """Return the kernels for the device and dtype of `array`.

    float32 and bfloat16 (on the CPU only as a `product_input`) have compiled kernels, unless the environment sets
    `LUCID_KERNELS=reference`. Other dtypes, such as float64 in gradient checks, use the reference. Raises `ConfigError`
    if the compiled kernels cannot be loaded.
    """
    return _compiled_for(array) if array.dtype in _COMPILED else reference


def products_of(array: Array) -> Products:
    """Return the products among `of(array)`; on the CPU this loads no compiled kernels."""
    if array.dtype not in _COMPILED or _reference_is_asked_for():
        return reference
    if array_module(array) is not np:
        return _on_gpu()
    from lucid.kernels import products

    return products


def set_precision(precision: Precision) -> str | None:
    """Round the inputs of products over float32 arrays on the CPU, in linear layers and attention, to `precision`.

    The choice holds for the whole process. Products accumulate in float32 either way, and results are float32 except
    between the products of attention. Returns a sentence for the user if this processor is slow at it. Raises
    `ConfigError` if the precision is not available.
    """
    global _precision
    remark = None
    if not _reference_is_asked_for():
        from lucid.kernels import products

        remark = products.set_precision(precision)
    elif precision != "float32":
        raise ConfigError(f"the reference kernels have no {precision} products: unset LUCID_KERNELS, or choose float32")
    _precision = precision
    return remark


def check_gpu_kernels() -> None:
    """Raise `ConfigError` if the environment asks for the reference kernels, which cannot train on a GPU.

    They need to know on the host where sequences begin; training on a GPU has these tables in its memory alone.
    """
    if _on_gpu() is reference:
        raise ConfigError(
            "the reference kernels do not train on a GPU: unset LUCID_KERNELS, or set train.device to cpu"
        )


@contextmanager
def timed_products() -> Iterator[None]:
    """Inside the block, compute each product on a GPU with its fastest algorithm.

    A product's first use times all algorithms and stores the choice for this kind of card. Outside the block the
    library chooses, and always chooses the same, so that the bits are the same without a stored choice.
    """
    if _on_gpu() is reference:
        yield
        return
    from lucid.kernels.cuda import plans

    with plans.timed():
        yield


@contextmanager
def choices_kept() -> Iterator[None]:
    """Restore the precision and `threads.limit` after the block."""
    before = _precision
    with threads.limit_kept():
        try:
            yield
        finally:
            if _precision != before:
                set_precision(before)


def product_library(device: str = CPU) -> str:
    """Return the name of the library that multiplies arrays on `device`, with the version that its bits depend on."""
    if device != CPU:
        if _on_gpu() is reference:
            return "CuPy's"
        from lucid.kernels.cuda import cublaslt

        return f"cuBLASLt {cublaslt.library().version}"
    if _reference_is_asked_for():
        return "NumPy's"
    from lucid.kernels import products

    return products.library_name()


def _compiled_for(array: Array) -> Kernels:
    return _on_cpu() if array_module(array) is np else _on_gpu()


def _reference_is_asked_for() -> bool:
    choice = os.environ.get("LUCID_KERNELS", "")
    if choice not in ("", "reference"):
        raise ConfigError(f"LUCID_KERNELS is {choice!r}; it takes 'reference', or is not set")
    return choice == "reference"


@functools.cache
def _on_gpu() -> Kernels:
    """Return the kernels for float32 and bfloat16 on a GPU. The first use of a kernel compiles or loads it."""
    if _reference_is_asked_for():
        return reference
    from lucid.kernels import cuda

    return cuda


@functools.cache
def _on_cpu() -> Kernels:
    """Return the kernels for float32 on the CPU. The first call loads Numba, and compiles if necessary."""
    if _reference_is_asked_for():
        return reference
    try:
        from lucid.kernels import cpu
    except ImportError as error:
        raise ConfigError(
            f"the compiled kernels need Numba, which cannot be loaded ({error}): pip install numba, "
            "or set LUCID_KERNELS=reference for slower ones"
        ) from error
    cpu.load()
    return cpu
