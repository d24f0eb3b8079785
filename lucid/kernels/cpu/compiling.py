"""How kernels are declared, and compiled: all at once on the first use of any, once per machine.

Each kernel has one signature, so that one compiled form serves all calls. The compiled forms are kept on disk under a
digest of this folder's sources: Numba itself looks only at the file a kernel stands in, not at those it calls into.
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
from lucid.kernels.compiled import announcement, kept_in, locked

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
        # NumPy's division: Python's would test each divisor, and a loop with a branch is not vectorised.
        dispatcher = numba.njit(nogil=True, error_model="numpy")(function)
        _declared.append((dispatcher, types.void(*parameters)))
        return dispatcher

    return declare


def part(function: Kernel) -> Kernel:
    """Declare a function that kernels call and LLVM inlines.

    No fast-math: not-a-number and infinities go through, and an element's result does not depend on whether it falls
    into the vectorised body of a loop or into its remainder.
    """
    return numba.njit(error_model="numpy")(function)


def reduction(function: Kernel) -> Kernel:
    """Declare a `part` that sums: LLVM may reorder the additions, which it does by the number of addends alone."""
    return numba.njit(error_model="numpy", fastmath={"reassoc", "contract"})(function)


def instruction(generator: Callable[..., Any]) -> Any:
    """Declare a function that kernels call and that stands for one LLVM instruction.

    `generator` takes the typing context and the types of the arguments, as `numba.extending.intrinsic` says.
    """
    return intrinsic(generator)


@functools.cache
def load() -> None:
    """Load all kernels from the disk, or compile them, if that has not been done.

    The processes of a machine load at once. Where a kernel is missing they take turns, so that one compiles and says
    so, and the others find its work. Raises `ConfigError` if what lies on the disk cannot be read.
    """
    folder = _cache_folder()
    _load_numba_without_scipy()
    try:
        with locked(folder, shared=True):
            _load_from(folder, _Refusal())
    except _Missing:
        with locked(folder):
            _load_from(folder, _Announcement(folder))


def _load_numba_without_scipy() -> None:
    """Load what Numba has for NumPy's functions, without SciPy's linear algebra.

    Numba imports that only to see whether it is installed, which takes a third of the time that all kernels take to
    load. None of them uses it; programs that do can still load it. A Numba that looks in another way is only slower.
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
    """Load the kernels kept in `folder`; compile and keep the others, each of which `listener` hears of."""
    with _cache_in(folder), event.install_listener("numba:compile", listener):
        for dispatcher, signature in _declared:
            if folder is not None:
                dispatcher.enable_caching()
            try:
                dispatcher.compile(signature)
            except (OSError, EOFError, pickle.UnpicklingError) as error:
                # A full disk is no reason to stop: the kernel is compiled, just not kept.
                if not dispatcher.signatures:
                    raise ConfigError(
                        f"the compiled kernels in {folder} cannot be read ({error}): delete it"
                    ) from error
    for dispatcher, _ in _declared:
        dispatcher.disable_compile()


class _Missing(Exception):  # noqa: N818  # no error: it is compiled then
    """A kernel is not on the disk."""


class _Refusal(event.Listener):  # type: ignore[misc]  # mypy does not read Numba
    """Raises `_Missing` where a kernel would be compiled."""

    def on_start(self, event: Any) -> None:
        raise _Missing

    def on_end(self, event: Any) -> None:
        pass


class _Announcement(event.Listener):  # type: ignore[misc]  # mypy does not read Numba
    """Says once that kernels are being compiled, when the first is."""

    def __init__(self, folder: Path | None) -> None:
        self._message: str | None = announcement(folder)

    def on_start(self, event: Any) -> None:
        if self._message is not None:
            sys.stderr.write(self._message)
            sys.stderr.flush()
        self._message = None

    def on_end(self, event: Any) -> None:
        pass


def _cache_folder() -> Path | None:
    """Return a writable folder for the compiled forms of just these sources, if there is one."""
    digest = hashlib.sha256()
    for source in sorted(_SOURCES.glob("*.py")):
        digest.update(source.read_bytes())
    return kept_in(digest.hexdigest(), _SOURCES)


@contextmanager
def _cache_in(folder: Path | None) -> Iterator[None]:
    """Let Numba keep its files in `folder` during the block."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder or "")
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before
