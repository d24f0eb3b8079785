"""Lets the real CuPy find GPUs that are not there, in each process that has this folder first on PYTHONPATH."""

import ctypes
import functools
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_FOLDER = Path(__file__).resolve().parent

_load = ctypes.CDLL


def _run_the_next() -> None:
    """Run the sitecustomize that this one hides."""
    others = [folder for folder in sys.path if Path(folder or ".").resolve() != _FOLDER]
    found = PathFinder.find_spec("sitecustomize", others)
    if found is not None and found.loader is not None:
        found.loader.exec_module(importlib.util.module_from_spec(found))


class _CDLL(_load):
    """Libraries as ctypes loads them, but for CUDA's driver, and for cuBLASLt."""

    def __new__(cls, name: Any = None, *arguments: Any, **settings: Any) -> Any:
        # CuPy, which looks for what else there is, says how; that finds the library itself.
        if Path(str(name or "")).name.startswith("libcublasLt") and not (arguments or settings):
            return _cublaslt()
        return super().__new__(cls)

    def __init__(self, name: Any = None, *arguments: Any, **settings: Any) -> None:
        if Path(str(name or "")).name.startswith("libcuda.so"):
            from building import library

            name = library()._name
        super().__init__(name, *arguments, **settings)


@functools.cache
def _cublaslt() -> Any:
    import host_work  # noqa: F401  products are done in the order of their stream
    from cublaslt import Library

    return Library()


class _Finder:
    """Redirects what CuPy calls of CUDA as its modules are imported."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _BEFORE and name != _NVRTC:
            return None
        found = PathFinder.find_spec(name, path, target)
        assert found is not None
        if name == _NVRTC:
            found.loader = _Loader(name, str(found.origin))
        else:
            _BEFORE[name](Path(str(found.origin)))
        return found


class _Loader(ExtensionFileLoader):
    """Loads CuPy's module for NVRTC, and lets it call a C++ compiler."""

    def exec_module(self, module: ModuleType) -> None:
        from compiling import take_the_place_of

        super().exec_module(module)
        take_the_place_of(module)


def _redirect_runtime(module: Path) -> None:
    from building import library
    from redirection import redirect

    # Sums go by kernels whose sources are there, not by those of CUB.
    os.environ["CUPY_ACCELERATORS"] = ""
    redirect(module, library())


def _redirect_cublas(module: Path) -> None:
    from building import library
    from redirection import redirect_exported

    # CuPy's module has loaded the library that it is linked to.
    redirect_exported(_load(str(module)), _CUBLAS, library())


_NVRTC = "cupy_backends.cuda.libs.nvrtc"
_BEFORE = {
    "cupy_backends.cuda.api.runtime": _redirect_runtime,
    "cupy_backends.cuda.libs.cublas": _redirect_cublas,
}
# Those that CuPy multiplies by.
_CUBLAS = (
    *("cublasCreate_v2", "cublasDestroy_v2", "cublasSetStream_v2", "cublasGetStream_v2"),
    *("cublasSetMathMode", "cublasGetMathMode"),
    *("cublasDgemm_v2", "cublasSgemmEx", "cublasGemmEx", "cublasGemmStridedBatchedEx"),
)

ctypes.CDLL = _CDLL  # type: ignore[misc]
ctypes.cdll = ctypes.LibraryLoader(_CDLL)
sys.meta_path.insert(0, _Finder)
_run_the_next()
