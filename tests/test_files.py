"""Files are read only if they are regular, and written so that several writers and readers never see half of one."""

import errno
import fcntl
import multiprocessing
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from lucid import files
from lucid.errors import ConfigError
from lucid.files import (
    append,
    check_is_file,
    check_writable,
    lock,
    nearest_existing,
    open_file,
    replacing,
    written_aside,
)

SIZE = 200_000


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [a_folder, a_pipe, a_socket, a_device])
@pytest.mark.parametrize("read", [open_file, check_is_file, lambda path: append(path, b"line\n")])
def test_what_is_not_a_regular_file_is_refused_without_waiting(
    make: Callable[[Path], None], read: Callable[[Path], object], tmp_path: Path
) -> None:
    make(tmp_path / "it")
    with pytest.raises(OSError):  # noqa: PT011  # each kind has its number
        read(tmp_path / "it")


def write(path: Path, content: bytes, times: int) -> None:
    for _ in range(times):
        with written_aside(path, ConfigError) as file:
            for start in range(0, SIZE, SIZE // 20):
                file.write(content[start : start + SIZE // 20])
                file.flush()


def test_readers_see_one_writer_s_file_whole_while_several_write_it(tmp_path: Path) -> None:
    path, contents = tmp_path / "file", [bytes([letter]) * SIZE for letter in b"ab"]
    write(path, contents[0], 1)
    writers = [multiprocessing.Process(target=write, args=(path, content, 50)) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_bytes() in contents
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_another_writer_has_made_meanwhile_is_named(tmp_path: Path) -> None:
    def write_meanwhile() -> None:
        with replacing(tmp_path / "model") as first:
            first.mkdir()
            with replacing(tmp_path / "model") as second:
                second.mkdir()
                (second / "file").touch()

    with pytest.raises(OSError, match="not empty") as refused:
        write_meanwhile()
    assert refused.value.filename == str(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_is_replaced_as_a_file_is(tmp_path: Path) -> None:
    with replacing(tmp_path / "made") as aside:
        aside.mkdir()
        (aside / "file").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["made", "made/file"]


def test_leftovers_of_killed_writers_are_removed_after_a_day(tmp_path: Path) -> None:
    files._remove_leftovers.cache_clear()
    with replacing(tmp_path / "file") as aside:
        aside.touch()
    for name, age in ((aside.name, 90_000), (aside.name.replace("file", "young"), 4000), ("my.partial", 90_000)):
        (tmp_path / name).touch()
        modified = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (modified, modified))
    files._remove_leftovers.cache_clear()
    write(tmp_path / "file", b"", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "file",
        "my.partial",
        aside.name.replace("file", "young"),
    ]


def test_a_file_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none/file could not be written: No such file or directory$"):
        write(tmp_path / "none" / "file", b"", 1)


def test_what_is_appended_in_part_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    append(path, b"one\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            append(path, b"two\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    append(path, b"three\n")
    assert path.read_bytes() == b"one\nthree\n"


@pytest.mark.parametrize(
    ("folder", "found"),
    [(".", "."), ("new", "."), ("there/new/newer", "there"), ("broken", "broken"), ("broken/new", "broken")],
)
def test_a_missing_folder_will_be_in_the_nearest_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, found: str
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "broken").symlink_to("nowhere")
    assert nearest_existing(tmp_path / folder) == tmp_path / found
    monkeypatch.chdir(tmp_path)
    assert nearest_existing(Path(folder)).absolute() == tmp_path / found


@pytest.mark.parametrize("missing", ["", "new", "new/newer"])
def test_a_folder_is_tried_without_leaving_anything(tmp_path: Path, missing: str) -> None:
    check_writable(tmp_path / missing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["file", "file/new", "broken"])
def test_a_place_that_takes_no_files_is_refused_by_name(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken").symlink_to("nowhere")
    with pytest.raises(OSError) as caught:  # noqa: PT011  # each has its number
        check_writable(tmp_path / folder)
    assert caught.value.filename == str(tmp_path / folder.partition("/")[0])


def test_an_exclusive_lock_is_asked_for_on_a_file_that_is_open_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS requires, where the kernel makes a lock of `fcntl` from it."""
    flock = fcntl.flock

    def of_nfs(file: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX and not fcntl.fcntl(file, fcntl.F_GETFL) & os.O_RDWR:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    with lock(tmp_path / "lock", fcntl.LOCK_EX) or pytest.fail("it is not locked"), pytest.raises(BlockingIOError):
        lock(tmp_path / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_nothing_is_locked(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert lock(tmp_path / "lock", fcntl.LOCK_EX) is None
