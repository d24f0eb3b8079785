"""Finds the files that a corpus is made of, cuts them into pieces that processes read side by side, and opens them.

A piece begins with a line, and in plain text with a document. Where the cuts are depends on the inputs alone.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from lucid.errors import DataError
from lucid.files import open_file, reason_of, sha256_of
from lucid.preparation.python_docs import module_files
from lucid.preparation.unpacking import READ_ERRORS, Digested, unpacked

PYTHON_DOCS = "python-docs"
PARQUET = ".parquet"
_TEXT, _JSON = ".txt", ".jsonl"
SUFFIXES = (*(kind + packed for kind in (_TEXT, _JSON) for packed in ("", ".gz", ".zst")), PARQUET)

# Bytes of one line: a small compressed file may hold a line of any length.
LONGEST_LINE = 1 << 24
# Bytes that are read at once while a file is cut into pieces.
_SCANNED_AT_ONCE = 1 << 20
# Rows of a table that are held at once, and bytes of a column that are read at once.
_ROWS_AT_ONCE, _COLUMN_BYTES_AT_ONCE = 8, 1 << 20


@dataclass(frozen=True)
class Source:
    """One file, or the default corpus where `path` is None. `name` does not depend on the working directory.

    `size` (bytes) and `modified` (ns) describe the file as it was found: it must not change during the preparation.
    `number` is its place among all sources.
    """

    name: str
    path: str | None
    size: int = 0
    modified: int = 0
    number: int = field(default=0, compare=False)

    @property
    def kind(self) -> str:
        """One of `.txt`, `.jsonl`, `.parquet` and `python-docs`."""
        if self.path is None:
            return PYTHON_DOCS
        return Path(self.path.lower().removesuffix(".gz").removesuffix(".zst")).suffix

    @property
    def shown(self) -> str:
        """The name that messages use."""
        return self.path or self.name

    def check_unchanged(self) -> None:
        """Raise `DataError` if the file has changed since it was found, and `OSError` if it is gone."""
        if self.path is not None and _file(self.name, Path(self.path)) != self:
            raise DataError(f"{self.path} has changed while it was being prepared: start again when it is finished")


def find_sources(inputs: Sequence[str | Path]) -> tuple[list[Source], list[Source]]:
    """Return the files of `inputs` in reading order, and the files of other kinds, which are passed over in folders.

    Inputs keep their order, and the files of a folder are sorted by path. Suffixes may be in upper case.
    Raises `DataError` on an input that is missing, of an unknown kind, or without a file of a known kind.
    """
    if not inputs:
        raise DataError(f"no input was given: name files or folders of text, or {PYTHON_DOCS!r}")
    sources: list[Source] = []
    others: list[Source] = []
    for entry in inputs:
        path = Path(entry)
        if entry == PYTHON_DOCS:
            sources.append(Source(PYTHON_DOCS, None))
        elif path.is_dir():
            known, passed_over = _folder_sources(path)
            sources += known
            others += passed_over
        elif not path.is_file():
            what = "is neither a file nor a folder" if path.exists() else "does not exist"
            raise DataError(f"input {str(path)!r} {what}: check the path, or use {PYTHON_DOCS!r}")
        elif _is_known(path):
            sources.append(_file(path.name, path))
        else:
            raise DataError(f"input {str(path)!r} is of an unknown kind: use {', '.join(SUFFIXES)}")
    return [replace(source, number=number) for number, source in enumerate(sources)], others


def _is_known(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def _file(name: str, path: Path) -> Source:
    status = path.stat()
    # The manifest is UTF-8: bytes of a file name that are not appear there as \\xff.
    name = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return Source(name, str(path), status.st_size, status.st_mtime_ns)


def _folder_sources(folder: Path) -> tuple[list[Source], list[Source]]:
    sources: list[Source] = []
    others: list[Source] = []
    for path in sorted(_files_below(folder)):
        (sources if _is_known(path) else others).append(_file(path.relative_to(folder).as_posix(), path))
    if not sources:
        names = ", ".join(other.name for other in others[:3])
        rest = f", but {len(others):,} of other kinds, such as {names}" if others else ""
        raise DataError(f"input folder {str(folder)!r} holds no {', '.join(SUFFIXES)} file{rest}")
    return sources, others


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in and below `folder`, through links too; those of other kinds unless a dot begins their name."""

    def refuse(error: OSError) -> None:
        raise DataError(f"folder {error.filename!r} cannot be read ({error.strerror}): make it readable, or move it")

    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        # Links may form a circle, or lead to one folder twice.
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for path in (Path(place, name) for name in names):
            if not _is_known(path):
                if path.is_file() and not path.name.startswith("."):
                    yield path
            elif not path.exists():
                raise DataError(f"{str(path)!r} is a broken link: fix it or remove it")
            elif path.is_file():
                yield path
            elif not path.is_dir():
                raise DataError(f"{str(path)!r} is a pipe, a socket or a device, not a file: move it away")


@dataclass(frozen=True)
class Scan:
    """The result of reading a source once: its SHA-256, the bytes of its unpacked content, and where its pieces start.

    A cut is (offset, line), or in tables (row, row + 1); the last cut is the end. A source that cannot be read has no
    cuts, and `problem` says why.
    """

    sha256: str = ""
    content_bytes: int = 0
    cuts: tuple[tuple[int, int], ...] = ()
    problem: str = ""


def scan(source: Source, piece_bytes: int, text_field: str, whole_files: bool) -> Scan:
    """Read `source` once and cut it into pieces of `piece_bytes` bytes of content, or a little more."""
    if source.path is None:
        return _scan_python_docs()
    path = Path(source.path)
    try:
        if source.kind == PARQUET:
            return _scan_table(path, piece_bytes, text_field)
        with open_file(path) as file:
            digested = Digested(file)
            content = unpacked(io.BufferedReader(digested, 1 << 20), path)
            between_documents = source.kind == _TEXT and not whole_files
            cuts = ((0, 1), *_cuts(content, piece_bytes, between_documents))
            return Scan(digested.digest.hexdigest(), cuts[-1][0], cuts)
    except READ_ERRORS as error:
        return Scan(problem=reason_of(error))


def _cuts(content: BinaryIO, piece_bytes: int, between_documents: bool) -> Iterator[tuple[int, int]]:
    """Yield where each piece ends: after a line, and with `between_documents` after a blank one if one comes soon."""
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
            # The first of these lines began in the block: it is not blank even if its rest is.
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


def _scan_table(path: Path, piece_bytes: int, column: str) -> Scan:
    digest = sha256_of(path)
    with _table(path) as table:
        if column not in table.schema_arrow.names:
            raise EOFError(f"it has no column {column!r}")
        groups = [table.metadata.row_group(number) for number in range(table.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
        rows = table.metadata.num_rows
    rows_at_once = max(1, rows * piece_bytes // max(size, 1))
    starts = (*range(0, rows, rows_at_once), rows) if rows else (0,)
    return Scan(digest, size, tuple((start, start + 1) for start in starts))


def read_rows(path: Path, column: str, start: int, stop: int) -> Iterator[Any]:
    """Yield the values of a parquet column in rows `start` to `stop - 1`, holding a few rows at a time.

    A value that is not UTF-8 is yielded as a `UnicodeDecodeError`, and one of more than `LONGEST_LINE` bytes as an
    `OverflowError`. Raises `EOFError` if the file is damaged.
    """
    with _table(path) as table:
        groups: list[int] = []
        row = first = 0
        for number in range(table.num_row_groups):
            end = row + table.metadata.row_group(number).num_rows
            if row < stop and start < end:
                first = first if groups else row
                groups.append(number)
            row = end
        row = first
        for batch in table.iter_batches(_ROWS_AT_ONCE, groups, [column]):
            for value in batch.column(0)[max(start - row, 0) : max(stop - row, 0)]:
                try:
                    yield _checked(value)
                except (UnicodeDecodeError, OverflowError) as error:
                    yield error
            row += len(batch)
            if row >= stop:
                return


def _checked(value: Any) -> Any:
    buffer = value.as_buffer() if hasattr(value, "as_buffer") else None
    if buffer is not None and buffer.size > LONGEST_LINE:
        raise OverflowError
    return value.as_py()


@contextmanager
def _table(path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path}: reading parquet needs pyarrow: pip install pyarrow") from error
    try:
        with parquet.ParquetFile(path, buffer_size=_COLUMN_BYTES_AT_ONCE) as table:
            yield table
    except pyarrow.ArrowException as error:
        raise EOFError(str(error)) from error


class Contents:
    """Opens the unpacked content of files at any byte. The last file stays open, so that reading on costs nothing.

    A compressed file can only be read from its start: everything before the byte is unpacked and thrown away.
    """

    def __init__(self) -> None:
        self._path = ""
        self._file: BinaryIO | None = None
        self._content: BinaryIO | None = None

    def at(self, source: Source, start: int) -> BinaryIO:
        """Return the content of a source from byte `start` on. Raises `OSError` if the file is gone."""
        assert source.path is not None
        source.check_unchanged()
        if self._content is None or self._path != source.path:
            self.close()
            path = Path(source.path)
            self._file = open_file(path)
            self._path, self._content = source.path, unpacked(self._file, path)
        self._content.seek(start)
        return self._content

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()
        self._file = self._content = None
