"""The folders that keep compiled kernels, and the lock that lets one of several processes compile them."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from lucid.files import lock

# Bytes that must be free before kernels are stored: all of them take less.
_ROOM = 16 << 20


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


def compiling_message(folder: Path | None, is_locked: bool) -> str:
    """Return the message for the user before kernels are compiled in a block of `locked`."""
    if folder is None:
        kept = "for this process alone: no folder for them is writable"
    elif _free(folder) < _ROOM:
        kept = f"for this process alone: the disk of {folder} is full"
    elif not is_locked:
        kept = f"by each process at once, as the file system has no locks, and kept in {folder}"
    else:
        kept = f"once per machine ({folder})"
    return f"lucid: compiling kernels, {kept}\n"


def _free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


@contextmanager
def locked(folder: Path | None, shared: bool = False) -> Iterator[bool]:
    """Keep other processes out of the block, or, if `shared`, only those that do not share it.

    Without a folder, and where it cannot be locked, the value is False and processes enter together: each compiles, and
    files are whole.
    """
    held = None if folder is None else lock(folder / "lock", fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    with held or nullcontext():
        yield held is not None
