"""The folders that keep compiled kernels, and the lock that lets one of several processes compile them."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


def kernel_folder(digest: str, sources: Path) -> Path | None:
    """Return the `cache_folder` for kernels compiled from sources with this digest."""
    return cache_folder(f"kernels-{digest[:16]}", sources)


def cache_folder(name: str, sources: Path) -> Path | None:
    """Return a writable folder of this name that outlives the process, or None if there is none.

    The function tries in order: `$NUMBA_CACHE_DIR`, `~/.cache/lucid`, and `__pycache__` in the folder `sources`.
    """
    for base in _bases(sources):
        folder = base / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        return folder
    return None


def _bases(sources: Path) -> Iterator[Path]:
    if "NUMBA_CACHE_DIR" in os.environ:
        yield Path(os.environ["NUMBA_CACHE_DIR"])
    yield Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "lucid"
    yield sources / "__pycache__"


def compiling_message(folder: Path | None) -> str:
    """Return the message for the user before kernels are compiled."""
    kept = f"once per machine ({folder})" if folder else "for this process alone: no folder for them is writable"
    return f"lucid: compiling kernels, {kept}\n"


@contextmanager
def locked(folder: Path | None, shared: bool = False) -> Iterator[None]:
    """Keep other processes out of the block, or, if `shared`, only those that do not share it."""
    if folder is None:
        yield
        return
    with ExitStack() as held:
        # Some network file systems have no locks, and the lock file may be another user's. Files are whole even so.
        with suppress(OSError):
            file = os.open(folder / "lock", os.O_RDONLY | os.O_CREAT, 0o666)
            held.callback(os.close, file)
            fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
