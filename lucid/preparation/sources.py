"""Finds the files that a corpus is made of, and cuts them into pieces that processes read side by side.

A piece begins with a line, and in plain text with a document. Where the cuts are depends on the inputs alone.
"""

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from lucid.errors import DataError
from lucid.preparation.python_docs import module_files
from lucid.preparation.tables import measure

PYTHON_DOCS = "python-docs"
PARQUET = ".parquet"
_TEXT, _JSON = ".txt", ".jsonl"
_PACKED = ".gz", ".zst"
SUFFIXES = (*(kind + packed for kind in (_TEXT, _JSON) for packed in ("", *_PACKED)), PARQUET)

# Bytes of one line: a small compressed file may hold a line of any length.
LONGEST_LINE = 1 << 24
# Compressed bytes that are unpacked at once: 1 KiB stands for 32 MiB at most.
_ZSTANDARD_STEP = 1 << 10
# Bytes that are read at once while a file is cut into pieces.
_SCANNED_AT_ONCE = 1 << 20
# What goes wrong with a file that is damaged or gone.
READ_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError)


@dataclass(frozen=True)
class Source:
    """One file, or the default corpus where `path` is None. `name` does not depend on the working directory.

    `size` and `modified` (ns) are those of the file when it was found: it must not change while it is prepared.
    """

    name: str
    path: str | None
    size: int = 0
    modified: int = 0

    @property
    def kind(self) -> str:
        """One of `.txt`, `.jsonl`, `.parquet` and `python-docs`."""
        if self.path is None:
            return PYTHON_DOCS
        return Path(self.path.removesuffix(".gz").removesuffix(".zst")).suffix

    @property
    def shown(self) -> str:
        """What messages call it."""
        return self.path or self.name

    def check_unchanged(self) -> None:
        """Raise `DataError` if the file has changed since it was found; `OSError` if it is gone."""
        if self.path is not None and _file(self.name, Path(self.path)) != self:
            raise DataError(f"{self.path} has changed while it was being prepared: start again when it is finished")


@dataclass(frozen=True)
class Scan:
    """What reading a source once tells: its SHA-256, the bytes of its content unpacked, and where its pieces start.

    A cut is (offset, line), in tables (row, row + 1); the last one is the end. What cannot be read has none, and
    `problem` says why.
    """

    sha256: str = ""
    content_bytes: int = 0
    cuts: tuple[tuple[int, int], ...] = ()
    problem: str | None = None


def find_sources(inputs: Sequence[str | Path]) -> list[Source]:
    """Return the files of `inputs` in reading order: the inputs as given, each folder's files by their sorted paths.

    Raises `DataError` on an input that is missing, of an unknown kind, or holds nothing that can be read.
    """
    if not inputs:
        raise DataError(f"no input was given: name files or folders of text, or {PYTHON_DOCS!r}")
    sources: list[Source] = []
    for entry in inputs:
        path = Path(entry)
        if entry == PYTHON_DOCS:
            sources.append(Source(PYTHON_DOCS, None))
        elif path.is_dir():
            sources += _folder_sources(path)
        elif not path.is_file():
            what = "is neither a file nor a folder" if path.exists() else "does not exist"
            raise DataError(f"input {str(path)!r} {what}: check the path, or use {PYTHON_DOCS!r}")
        elif path.name.endswith(SUFFIXES):
            sources.append(_file(path.name, path))
        else:
            raise DataError(f"input {str(path)!r} is of an unknown kind: use {', '.join(SUFFIXES)}")
    return sources


def _file(name: str, path: Path) -> Source:
    status = path.stat()
    # The manifest is UTF-8; bytes that are none, which a file's name may have, stand there as \\xff.
    name = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return Source(name, str(path), status.st_size, status.st_mtime_ns)


def _folder_sources(folder: Path) -> list[Source]:
    paths = sorted(_files_below(folder))
    if not paths:
        raise DataError(f"input folder {str(folder)!r} holds no {', '.join(SUFFIXES)} file")
    return [_file(path.relative_to(folder).as_posix(), path) for path in paths]


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of our kinds in `folder` and all below it, through links too. None is passed over in silence."""

    def refuse(error: OSError) -> None:
        raise DataError(f"the folder {error.filename!r} cannot be read ({error.strerror}): let it be read, or move it")

    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        # Links may lead in circles, or twice to one folder.
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for path in (Path(place, name) for name in names if name.endswith(SUFFIXES)):
            if not path.exists():
                raise DataError(f"{str(path)!r} is a link to what is not there: mend it, or remove it")
            if path.is_file():
                yield path


def scan(source: Source, piece_bytes: int, text_field: str, whole_files: bool) -> Scan:
    """Read `source` once and cut it into pieces of `piece_bytes` bytes of content, or a little more."""
    if source.path is None:
        return _scan_python_docs()
    path = Path(source.path)
    try:
        if source.kind == PARQUET:
            return _scan_table(path, piece_bytes, text_field)
        with path.open("rb") as file:
            digested = _Digested(file)
            content = _unpacked(io.BufferedReader(digested, 1 << 20), path)
            between_documents = source.kind == _TEXT and not whole_files
            cuts = ((0, 1), *_cuts(content, piece_bytes, between_documents))
            return Scan(digested.digest.hexdigest(), cuts[-1][0], cuts)
    except READ_ERRORS as error:
        return Scan(problem=reason_of(error))


def reason_of(error: BaseException) -> str:
    """Return why a file could not be read, in a few words."""
    return getattr(error, "strerror", None) or str(error)


def _cuts(content: BinaryIO, piece_bytes: int, between_documents: bool) -> Iterator[tuple[int, int]]:
    """Yield where each piece ends: with a line and, if asked for, with a blank one, unless none comes for long."""
    offset, line = 0, 1
    while True:
        start = offset
        while block := content.read(min(piece_bytes - (offset - start), _SCANNED_AT_ONCE)):
            offset, line = offset + len(block), line + block.count(b"\n")
        if offset == start:
            return
        passed, lines = 0, 0
        while rest := content.readline(LONGEST_LINE):
            offset, passed = offset + len(rest), passed + len(rest)
            if not rest.endswith(b"\n"):
                continue
            line, lines = line + 1, lines + 1
            # The first of these lines began in the block: it is not blank though its rest may be.
            if not between_documents or passed > piece_bytes or (lines > 1 and not rest.strip()):
                break
        yield offset, line


def _scan_python_docs() -> Scan:
    digest, size = hashlib.sha256(), 0
    for path in module_files():
        content = path.read_bytes()
        digest.update(content)
        size += len(content)
    return Scan(digest.hexdigest(), size, ((0, 1), (size, 1)))


def _scan_table(path: Path, piece_bytes: int, text_field: str) -> Scan:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    rows, size = measure(path, text_field)
    rows_at_once = max(1, rows * piece_bytes // max(size, 1))
    starts = (*range(0, rows, rows_at_once), rows) if rows else (0,)
    return Scan(digest, size, tuple((start, start + 1) for start in starts))


class Contents:
    """Opens the unpacked content of files at any offset. The last file stays open: going on in it costs no seeking.

    Compressed files can only be read from their start, so what lies before the offset is unpacked and passed over.
    """

    def __init__(self) -> None:
        self._path, self._offset = "", 0
        self._open = ExitStack()
        self._content: BinaryIO = io.BytesIO()

    def at(self, source: Source, start: int) -> BinaryIO:
        """Return the content of a source from byte `start` on; `OSError` if it is gone."""
        assert source.path is not None
        source.check_unchanged()
        if self._path != source.path or self._offset > start:
            self.close()
            path = Path(source.path)
            file = self._open.enter_context(path.open("rb"))
            self._path, self._offset, self._content = source.path, 0, _unpacked(file, path)
        if source.path.endswith(_PACKED):
            self._pass_over(start - self._offset)
        else:
            self._content.seek(start)
        self._offset = start
        return self._content

    def _pass_over(self, count: int) -> None:
        while count > 0:
            passed = len(self._content.read(min(count, 1 << 20)))
            if not passed:
                raise EOFError("it is shorter than it was")
            count -= passed

    def passed(self, count: int) -> None:
        """Note that `count` bytes of the content were read."""
        self._offset += count

    def close(self) -> None:
        """Close the file that is open."""
        self._path = ""
        self._open.close()


def _unpacked(file: BinaryIO, path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if path.suffix == ".zst":
        return io.BufferedReader(_Zstandard(file), 1 << 17)
    return file


class _Digested(io.RawIOBase):
    """A file whose SHA-256 is computed as it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._file.read(len(buffer))
        buffer[: len(found)] = found
        self.digest.update(found)
        return len(found)


class _Zstandard(io.RawIOBase):
    """The content of zstandard frames. Unlike the library's reader it sees that a file was cut short."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._packed, self._found = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._found:
            packed = self._packed or self._file.read(_ZSTANDARD_STEP)
            if not packed:
                if self._frame is not None:
                    raise EOFError("the file ends in the middle of a frame")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._found, self._packed = memoryview(self._frame.decompress(packed)), b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._found))
        buffer[:count], self._found = self._found[:count], self._found[count:]
        return count
