"""Files: read only if they are regular, written so that they are complete or absent, and locked.

Standard library only: the launcher uses it.
"""

import errno
import fcntl
import functools
import hashlib
import io
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from lucid.errors import LucidError

# A file or folder that is being written: its later name, then the host, the process and a number of its writer.
_ASIDE = re.compile(r".+\.[^/]+-\d+-[0-9a-f]{8}\.partial", re.DOTALL)
# Seconds after which such a file, if nobody has written to it, is the leftover of a writer that was killed. Clocks of
# hosts differ, and a job may have been suspended for a while.
_ABANDONED = 86_400
# What ends the names of compressed files, which `lucid.unpacking` reads.
PACKINGS = (".gz", ".zst", ".xz", ".bz2")
# Bytes that are read in one piece: more than the manifest of a corpus of a million files.
_LARGEST = 1 << 28


def open_file(path: Path) -> io.BufferedReader:
    """Open a regular file for reading, never waiting for another process as the opening of a pipe does.

    Raises `OSError`, also if `path` is a folder, a pipe, a socket or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_mode(path, os.fstat(descriptor).st_mode)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def split_packing(path: Path) -> tuple[Path, str]:
    """Return a path without its ending in `PACKINGS`, and this ending, in lower case; "" if it has none."""
    packing = path.suffix.lower()
    return (path.with_suffix(""), packing) if packing in PACKINGS else (path, "")


def check_is_file(path: Path) -> None:
    """Raise the `OSError` of `open_file`, for libraries that open a file by its name."""
    _check_mode(path, path.stat().st_mode)


def _check_mode(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a regular file", str(path))


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file. Raises `OSError` as `open_file` does, and if it is too large for memory."""
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > _LARGEST:
            raise OSError(errno.EFBIG, f"it is larger than {_LARGEST >> 20} MiB", str(path))
        return file.read()


def open_text(path: Path, errors: str = "strict") -> TextIO:
    """Open a regular file of UTF-8 for reading, after its byte order mark, if any. `errors` is one of `open`.

    Raises `OSError` as `open_file` does.
    """
    return io.TextIOWrapper(open_file(path), encoding="utf-8-sig", errors=errors)


def reason_of(error: BaseException) -> str:
    """Return the reason of an error in a few words: for an `OSError` without its number and its path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextmanager
def written_aside(path: Path, error_class: type[LucidError]) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` when the block ends, and is deleted if the block fails.

    Raises `error_class` if writing fails, for example on a full disk.
    """
    try:
        with replacing(path) as aside, aside.open("x+b") as file:
            yield file
    except OSError as error:
        raise error_class(f"{path} could not be written: {reason_of(error)}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a free name in the folder of `path`. The file or folder that the block makes there replaces `path`.

    It is flushed to the disk before. If the block fails, it is removed. No other writer has the same name, so each of
    several writers of `path` replaces it by something whole. Raises `OSError` if it cannot be written.
    """
    _remove_leftovers(path.parent)
    aside = path.with_name(f"{path.name}.{os.uname().nodename}-{os.getpid()}-{os.urandom(4).hex()}.partial")
    try:
        yield aside
        flush(aside)
        try:
            aside.replace(path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error  # of a name that the user knows
        flush(path.parent)
    finally:
        _remove(aside)


@functools.cache
def _remove_leftovers(folder: Path) -> None:
    """Remove what killed writers have left in a folder; once in a process, because it lists the folder."""
    with suppress(OSError):
        for path in folder.iterdir():
            if _ASIDE.fullmatch(path.name) and time.time() - path.lstat().st_mtime > _ABANDONED:
                _remove(path)


def _remove(path: Path) -> None:
    """Remove a file, or a folder with its files, if it is there and can be removed."""
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder: its names are then as safe as they get.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def append(path: Path, content: bytes) -> None:
    """Append all of `content` to a regular file, which is made if it is missing, or nothing. Raises `OSError`."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags, 0o666), "ab", buffering=0) as file:
        status = os.fstat(file.fileno())
        _check_mode(path, status.st_mode)
        left = memoryview(content)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            os.ftruncate(file.fileno(), status.st_size)
            raise


def nearest_existing(folder: Path) -> Path:
    """Return `folder`, or if it is missing the nearest folder that exists, on whose disk it will be.

    A link to nowhere exists, and is returned.
    """
    return next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))


def check_writable(folder: Path) -> None:
    """Raise an `OSError` if no file can be made in `folder`; if that is missing, in the nearest folder that exists.

    Nothing is left behind.
    """
    existing = nearest_existing(folder)
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise OSError(error.errno, reason_of(error), str(existing)) from error


def lock(path: Path, operation: int) -> BinaryIO | None:
    """Open the file `path`, which is made if it is missing, and lock it until it is closed or the process ends.

    `operation` is one of `fcntl.flock`. Raises `BlockingIOError` if it includes `LOCK_NB` and another process has the
    lock. Returns None if the file cannot be opened, or if its file system has no locks: nothing is locked then.
    """
    file = _opened_for_locking(path)
    if file is None:
        return None
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            raise
        return None
    return file


def _opened_for_locking(path: Path) -> BinaryIO | None:
    # Over NFS only a file that is open for writing can be locked exclusively. Another user's may not be writable.
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        with suppress(OSError):
            return open(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666), "rb", buffering=0)
    return None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a regular file's content, in hexadecimal. Raises `OSError` as `open_file` does."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
