"""Ways in which a path can be something else than a program expects, and a look at what a program has changed."""

import os
import shutil
import socket
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path


def _make_nothing(path: Path) -> None:
    """Leave the path free."""


def _make_socket(path: Path) -> None:
    # The address of a socket may have some hundred characters only.
    with chdir(path.parent), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)


_MAKE: dict[str, Callable[[Path], None]] = {
    "missing": _make_nothing,
    "an empty file": Path.touch,
    "an empty folder": Path.mkdir,
    "a fifo": os.mkfifo,
    "a socket": _make_socket,
    "/dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a dangling link": lambda path: path.symlink_to(path.parent / "nowhere" / "to be found"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}
NOT_PERMITTED = "not permitted"
FAULTS = (*_MAKE, NOT_PERMITTED)


def break_path(path: Path, fault: str) -> None:
    """Let `path`, at which may be a file, a folder or nothing, have one of `FAULTS`."""
    if fault == NOT_PERMITTED:
        path.chmod(0)
        return
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    _MAKE[fault](path)


def tree(folder: Path) -> dict[str, tuple[object, ...]]:
    """Return for each path below `folder` its kind and permissions, and of a file or link what tells of changes."""
    found: dict[str, tuple[object, ...]] = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        content: object = (status.st_size, status.st_mtime_ns) if path.is_file() else None
        found[str(path.relative_to(folder))] = (status.st_mode, os.readlink(path) if path.is_symlink() else content)
    return found
