"""Lets a stream of the stand-in call Python functions, as libraries of NVIDIA's let it start kernels."""

import ctypes
import itertools
import traceback
from collections.abc import Callable

import building

_NUMBER = ctypes.c_void_p
_numbers = itertools.count(1)
_works: dict[int, Callable[[], None]] = {}
# What a graph does may be done again, and is kept.
_captured: set[int] = set()


def submit(work: Callable[[], None], stream: int) -> None:
    """Let `work` be done in the order of a stream, by its address. Raises `RuntimeError` with CUDA's status."""
    library, number, capture = building.library(), next(_numbers), ctypes.c_int(0)
    library.cudaStreamIsCapturing(ctypes.c_void_p(stream), ctypes.byref(capture))
    _works[number] = work
    if capture.value:
        _captured.add(number)
    status = library.cudaLaunchHostFunc(ctypes.c_void_p(stream), _do, _NUMBER(number))
    if status != 0:
        raise RuntimeError(f"CUDA's status is {status}")


@ctypes.CFUNCTYPE(None, _NUMBER)
def _do(number: int) -> None:
    work = _works[number] if number in _captured else _works.pop(number)
    try:
        work()
    except Exception:  # ctypes would print it and go on; this ends the process
        traceback.print_exc()
        building.library().stand_in_fail()
