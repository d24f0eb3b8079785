"""The launch of kernels: the form of a program that fits the arrays, the number of threads, and the device."""

import functools
import math
from typing import Any

import numpy as np

from lucid.backend import Array, address, array_module, device_of
from lucid.errors import ConfigError
from lucid.kernels.cuda.compiling import Variant, machine_code

WARP = 32
# The widest access of a thread.
_ACCESS_BYTES = 16
# Sums over rows add blocks of this many rows, so that they do not depend on the device.
ROWS = 64


def blocks_of(count: int, size: int) -> int:
    """Return how many blocks of `size` cover `count`."""
    return -(-count // size)


def vector_width(width: int, first: Array, *others: Array | None) -> int:
    """Return how many elements of the first array a thread may access at once in rows of `width` elements.

    The number fills 16 bytes if each row consists of whole aligned accesses in all the arrays; otherwise it is 1.
    """
    widest = _ACCESS_BYTES // first.itemsize
    return widest if width % widest == 0 and all(is_aligned(array) for array in (first, *others)) else 1


def is_aligned(array: Array | None) -> bool:
    """Return whether an array, or None, begins at an address that allows the widest access."""
    return array is None or address(array) % _ACCESS_BYTES == 0


def threads_of_row(width: int, held: int, most: int, together: int) -> tuple[int, int]:
    """Return (threads per row, rows per block) if each thread holds up to `held` elements of a row.

    The threads of a row are whole warps. A block has about `together` threads, and at least one row. Raises
    `ConfigError` if a row needs more than `most` threads.
    """
    threads = WARP * blocks_of(width, held * WARP)
    if threads > most:
        raise ConfigError(f"rows of {width:,} elements are too long for the CUDA kernels, which take {held * most:,}")
    return threads, max(1, together // threads)


def launch(form: Variant, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Any) -> None:
    """Start a kernel of a program on the current device and stream.

    Arguments are CuPy arrays in C order, NumPy scalars of the parameters' types, or None for a null pointer.
    """
    if 0 in grid:
        return  # CuPy would start one block
    import cupy

    device = cupy.cuda.Device()
    function = _function(form, kernel, device.id, f"sm_{device.compute_capability}")
    function(grid, block, tuple(np.uint64(0) if argument is None else argument for argument in arguments))


@functools.cache
def _function(form: Variant, kernel: str, device: int, architecture: str) -> Any:
    return _module(form, device, architecture).get_function(kernel)


@functools.cache
def _module(form: Variant, device: int, architecture: str) -> Any:
    """Return a program, loaded on the current device, which is `device`."""
    import cupy

    module = cupy.cuda.function.Module()
    try:
        module.load(machine_code(form, architecture))
    except cupy.cuda.driver.CUDADriverError as error:
        raise ConfigError(
            f"the compiled {form.program} kernels cannot be loaded ({error}): delete the folder they are kept in, "
            "~/.cache/lucid unless NUMBA_CACHE_DIR or XDG_CACHE_HOME say otherwise"
        ) from error
    return module


def host_bounds(bounds: Array, first: Array, *others: Array | None) -> tuple[Array, int]:
    """Return the bounds of blocks on the device of the arrays, and the number of elements per access."""
    step = math.gcd(*bounds.tolist())
    return table_for(first, bounds), vector_width(step, first, *others)


def table_for(like: Array, table: Array) -> Array:
    """Return a table of integers in host memory as int64 on the device of `like`; each table is copied only once."""
    return _on_device(array_module(like), device_of(like), np.asarray(table, np.int64).tobytes())


@functools.lru_cache(maxsize=1024)
def _on_device(xp: Any, device: str, table: bytes) -> Array:
    """Return a table on the current device, which is `device`. Each slice of an update has one."""
    return xp.asarray(np.frombuffer(table, np.int64))
