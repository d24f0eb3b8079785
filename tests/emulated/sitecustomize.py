"""Puts what emulates cuBLASLt in the library's place, in each process that has this folder first on PYTHONPATH."""

import ctypes
import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

_load = ctypes.CDLL


def _run_the_next() -> None:
    """Run the sitecustomize that this one hides."""
    here = Path(__file__).parent
    others = [folder for folder in sys.path if Path(folder or ".").resolve() != here.resolve()]
    found = PathFinder.find_spec("sitecustomize", others)
    if found is not None and found.loader is not None:
        found.loader.exec_module(importlib.util.module_from_spec(found))


class _CDLL(_load):
    """Libraries as ctypes loads them, but for cuBLASLt."""

    def __new__(cls, name: Any = None, *arguments: Any, **settings: Any) -> Any:
        if name is not None and Path(str(name)).name.startswith("libcublasLt"):
            from emulated_cublaslt import Library

            return Library()
        return super().__new__(cls)


ctypes.CDLL = _CDLL  # type: ignore[misc]
ctypes.cdll = ctypes.LibraryLoader(_CDLL)
_run_the_next()
