"""Where compiled kernels are kept, and which of several processes compiles them."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


def kept_in(digest: str, beside: Path) -> Path | None:
    """Return a writable folder for what is compiled from sources of this digest, if there is one: see `folder_of`."""
    return folder_of(f"kernels-{digest[:16]}", beside)


def folder_of(name: str, beside: Path) -> Path | None:
    """Return a writable folder of this name for what this machine need not make anew, if there is one.

    It is where the user says, or in the home, or among the sources, which lie in `beside`.
    """
    for base in _bases(beside):
        folder = base / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        return folder
    return None


def _bases(beside: Path) -> Iterator[Path]:
    if "NUMBA_CACHE_DIR" in os.environ:
        yield Path(os.environ["NUMBA_CACHE_DIR"])
    yield Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "lucid"
    yield beside / "__pycache__"


def announcement(folder: Path | None) -> str:
    """Return what to tell the user when kernels are about to be compiled."""
    kept = f"once per machine ({folder})" if folder else "for this process alone: no folder for them is writable"
    return f"lucid: compiling kernels, {kept}\n"


@contextmanager
def locked(folder: Path | None, shared: bool = False) -> Iterator[None]:
    """Keep other processes out of the block while we are in it; if `shared`, those alone that do not share it."""
    if folder is None:
        yield
        return
    with ExitStack() as held:
        # Some network file systems have no locks, and another user's may not be ours. What is kept is whole even so.
        with suppress(OSError):
            file = os.open(folder / "lock", os.O_RDONLY | os.O_CREAT, 0o666)
            held.callback(os.close, file)
            fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
