"""Lets Python be told what the devices of the stand-in are asked to do, of which nothing is done."""

import ctypes
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import building

_Shape = ctypes.POINTER(ctypes.c_ssize_t)
_Told = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_char_p, ctypes.c_size_t, _Shape, ctypes.c_size_t)


@contextmanager
def watched(watcher: Callable[[str, int, tuple[int, ...]], None]) -> Iterator[None]:
    """Call `watcher(what, bytes, shape)` inside the block, in the thread that asks for it, and let nothing be done.

    `what` is the name of a kernel of CuPy's, "copy", "copy from the host", "copy to the host", "memset", or "?", which
    is anything else. `bytes` are those that are read and written at least, one side's where the host is the other, and
    `shape` is that of what a kernel makes, whose dimensions CuPy joins where it can. What memory holds means nothing
    meanwhile. If `watcher` raises an exception, CuPy raises an error of CUDA's.
    """

    @_Told
    def tell(what: bytes, size: int, shape: Any, dimensions: int) -> bool:
        try:
            watcher(what.decode(), size, tuple(shape[:dimensions]))
        except Exception:  # ctypes would print it and go on; CUDA's error stops who asked
            traceback.print_exc()
            return False
        return True

    library = building.library()
    library.stand_in_watch(tell)
    try:
        yield
    finally:
        library.stand_in_watch(None)
