"""Declaration and compilation of kernels: the first use of any compiles all, once per machine.

Each kernel has one signature, so that one compiled form serves all calls. A folder named after a digest of this
package's sources keeps the compiled forms, because Numba notices changes only in a kernel's own file.
"""

import functools
import hashlib
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba import types
from numba.core import event
from numba.extending import intrinsic

from lucid.errors import ConfigError
from lucid.kernels.cache import compiling_message, kernel_folder, locked

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

_SOURCES = Path(__file__).parent
_declared: list[tuple[Any, Any]] = []


def read(dimensions: int, dtype: Any = types.float32) -> types.Type:
    """Return the type of a C-contiguous array parameter that the kernel only reads."""
    return types.Array(dtype, dimensions, "C", readonly=True)


def write(dimensions: int, dtype: Any = types.float32) -> types.Type:
    """Return the type of a C-contiguous array parameter that the kernel writes to."""
    return types.Array(dtype, dimensions, "C")


def kernel(*parameters: types.Type) -> Callable[[Kernel], Kernel]:
    """Declare a function as a kernel with parameters of these types. It returns nothing and releases the GIL."""

    def declare(function: Kernel) -> Kernel:
        # NumPy's division: Python's tests each divisor, and LLVM does not vectorise a loop with a branch.
        dispatcher = numba.njit(nogil=True, error_model="numpy")(function)
        _declared.append((dispatcher, types.void(*parameters)))
        return dispatcher

    return declare


def part(function: Kernel) -> Kernel:
    """Declare a function that kernels call and LLVM inlines.

    Without fast-math: NaN and infinities propagate, and an element's result does not depend on whether the vectorised
    body of a loop or its remainder computes it.
    """
    return numba.njit(error_model="numpy")(function)


def reduction(function: Kernel) -> Kernel:
    """Declare a `part` that sums. LLVM may reorder the additions, in an order that depends only on their number."""
    return numba.njit(error_model="numpy", fastmath={"reassoc", "contract"})(function)


def instruction(generator: Callable[..., Any]) -> Any:
    """Declare a function that stands for one LLVM instruction in kernels.

    `generator` takes the typing context and the types of the arguments: see `numba.extending.intrinsic`.
    """
    return intrinsic(generator)


@functools.cache
def load() -> None:
    """Load all kernels from the disk, or compile them if they are not there.

    The processes of a machine load at the same time. If a kernel is missing they take turns: one announces and compiles
    it, and the others load the result. Raises `ConfigError` if the files cannot be read.
    """
    folder = _cache_folder()
    _load_numba_without_scipy()
    try:
        with locked(folder, shared=True):
            _load_from(folder, _Refusal())
    except _Missing:
        with locked(folder) as is_locked:
            _load_from(folder, _Announcement(compiling_message(folder, is_locked)))


def _load_numba_without_scipy() -> None:
    """Load Numba's versions of NumPy's functions without SciPy's linear algebra.

    Numba imports SciPy's only to see whether it is installed, which takes a third of the time to load all kernels. No
    kernel uses it; programs that do can still load it. With a Numba that checks in another way, loading is slower.
    """
    try:
        linalg: Any = import_module("numba.np.linalg")
        ensure_blas = linalg.ensure_blas
    except (ImportError, AttributeError):
        return
    linalg.ensure_blas = lambda: None
    try:
        with suppress(ImportError):
            import_module("numba.np.arraymath")
    finally:
        linalg.ensure_blas = ensure_blas


def _load_from(folder: Path | None, listener: event.Listener) -> None:
    """Load the kernels in `folder`; compile and store the others, and notify `listener` of each."""
    with _cache_in(folder), event.install_listener("numba:compile", listener):
        for dispatcher, signature in _declared:
            if folder is not None:
                dispatcher.enable_caching()
            try:
                dispatcher.compile(signature)
            except (OSError, EOFError, pickle.UnpicklingError) as error:
                # A full disk is no reason to stop: the kernel is compiled but not stored.
                if not dispatcher.signatures:
                    raise ConfigError(
                        f"the compiled kernels in {folder} cannot be read ({error}): delete it"
                    ) from error
    for dispatcher, _ in _declared:
        dispatcher.disable_compile()


class _Missing(Exception):  # noqa: N818  # no error: the kernel is compiled then
    """A kernel is not on the disk."""


class _Refusal(event.Listener):  # type: ignore[misc]  # mypy does not read Numba
    """Raises `_Missing` when a kernel would be compiled."""

    def on_start(self, event: Any) -> None:
        raise _Missing

    def on_end(self, event: Any) -> None:
        pass


class _Announcement(event.Listener):  # type: ignore[misc]  # mypy does not read Numba
    """Announces the compilation of the first kernel, and no other."""

    def __init__(self, message: str) -> None:
        self._message: str | None = message

    def on_start(self, event: Any) -> None:
        if self._message is not None:
            sys.stderr.write(self._message)
            sys.stderr.flush()
        self._message = None

    def on_end(self, event: Any) -> None:
        pass


def _cache_folder() -> Path | None:
    """Return a writable folder for the compiled forms of exactly these sources, if there is one."""
    digest = hashlib.sha256()
    for source in sorted(_SOURCES.glob("*.py")):
        digest.update(source.read_bytes())
    return kernel_folder(digest.hexdigest(), _SOURCES)


@contextmanager
def _cache_in(folder: Path | None) -> Iterator[None]:
    """Make Numba store its files in `folder` inside the block."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder or "")
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before
