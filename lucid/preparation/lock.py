"""Keeps two preparations from working in one folder at the same time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lucid.errors import DataError
from lucid.files import lock

_LOCK = "preparing.lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make `folder`, and hold its lock for the length of the block. Raises `DataError` if another process holds it.

    The system releases the lock when the process ends, in whatever way. Over NFS it works between hosts. In a folder
    that cannot be written, and on a file system without locks, nothing is locked.
    """
    path = folder / _LOCK
    file = _locked(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        if file is not None:
            file.close()


def _locked(path: Path) -> BinaryIO | None:
    """Return the lock file, locked; None if it cannot be made or locked."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None
        try:
            file = lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"another preparation is at work in {path.parent}, perhaps on another host: wait until it has ended, "
                "or choose another folder"
            ) from error
        if file is None or _is_at(file, path):
            return file
        # The last holder has just removed this file, and another process may hold a new one: try again.
        file.close()


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
