"""Reads documents from pieces of text files, JSON lines and tables, or from the documentation of Python itself.

Text that cannot be used, such as a line that is not UTF-8, is left out and reported with its file and line.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lucid.errors import DataError
from lucid.files import reason_of
from lucid.json_values import parse_json
from lucid.preparation.python_docs import python_documents
from lucid.preparation.sources import (
    LONGEST_LINE,
    PARQUET,
    PYTHON_DOCS,
    Contents,
    Scan,
    Source,
    find_sources,
    read_rows,
    scan,
)
from lucid.preparation.unpacking import READ_ERRORS

# Characters after which a document of plain text without blank lines is cut, so that memory stays bounded.
_LONGEST_DOCUMENT = 1 << 22

TOO_LONG = f"longer than {LONGEST_LINE >> 20} MiB"
NOT_UTF8, NUL, NOT_JSON, SURROGATE = "not UTF-8", "NUL bytes", "not JSON", "half a surrogate pair"
NO_TEXT, EMPTY, UNREADABLE = "no text", "empty document", "unreadable file"
OTHER_KIND = "another kind of file"
# Other marks than line feeds that end a line of plain text.
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
_ADVICE = {
    TOO_LONG: "break it into more lines (in .txt, as with fold -s)",
    NOT_UTF8: "convert the file, as with iconv",
    NUL: "this may not be text: mend or remove it",
    NOT_JSON: "mend or remove the line",
    SURROGATE: "mend or remove the line",
    NO_TEXT: "each record needs a field (--text-field) that is a string",
    EMPTY: "remove it",
    UNREADABLE: "mend it, or get it again",
}
# Where a table has no lines, and is no file of text.
_ADVICE_ON_CELLS = {
    TOO_LONG: "divide the text of the cell among several rows",
    NOT_UTF8: "write the column again as text in UTF-8",
    NO_TEXT: "each row needs text in the column (--text-field)",
}

# Called for everything that is left out, with the source, the line, the reason, and a detail or "".
Drop = Callable[[Source, int, str, str], None]


@dataclass(frozen=True)
class Document:
    """One text; `source` and `line` say where it came from.

    In a table the line is the number of the row, in the documentation of Python that of the document, all from 1.
    """

    source: Source
    line: int
    text: str


@dataclass(frozen=True)
class Piece:
    """The bytes `start` to `stop` of a source's unpacked content, or the rows of a table, which are read in one go.

    `line` is the number of its first line, and `size` its bytes.
    """

    source: Source
    start: int
    stop: int
    line: int
    size: int


def refuse(source: Source, line: int, reason: str, detail: str) -> None:
    """The `Drop` that leaves nothing out: raise `DataError`, which says where the fault is and what to do."""
    more = f" ({detail})" if detail else ""
    advice = _ADVICE | _ADVICE_ON_CELLS if source.kind == PARQUET else _ADVICE
    raise DataError(f"{source.shown}:{line}: {reason}{more}: {advice[reason]}")


def pieces_of(source: Source, found: Scan, drop: Drop) -> list[Piece]:
    """Return the pieces into which `scan` has cut a source."""
    if not found.cuts:
        drop(source, 1, UNREADABLE, found.problem)
    elif len(found.cuts) == 1:
        drop(source, 1, EMPTY, "")
    bytes_per_step = found.content_bytes / max(found.cuts[-1][0], 1) if found.cuts else 0
    return [
        Piece(source, start, stop, line, round((stop - start) * bytes_per_step))
        for (start, line), (stop, _) in zip(found.cuts, found.cuts[1:], strict=False)
    ]


class Reader:
    """Reads the documents of pieces, and keeps the last file open.

    In JSON lines and tables the text is in `text_field`. In plain text a blank line ends a document, or with
    `whole_files` only the end of the file does.
    """

    def __init__(self, text_field: str = "text", whole_files: bool = False) -> None:
        self._text_field, self._whole_files = text_field, whole_files
        self._contents = Contents()

    def documents(self, piece: Piece, drop: Drop) -> Iterator[Document]:
        """Yield the documents of a piece in order, holding one at a time."""
        if piece.source.kind == PYTHON_DOCS:
            documents = enumerate(python_documents(), start=1)
            yield from (Document(piece.source, number, text) for number, (_, text) in documents)
            return
        try:
            if piece.source.kind == PARQUET:
                yield from _usable(piece.source, self._rows(piece, drop), drop)
            elif piece.source.kind == ".jsonl":
                yield from _usable(piece.source, self._records(piece, drop), drop)
            else:
                yield from self._paragraphs(piece, drop)
        except READ_ERRORS as error:
            self.close()
            drop(piece.source, piece.line, UNREADABLE, reason_of(error))

    def close(self) -> None:
        """Close the file that is open."""
        self._contents.close()

    def _paragraphs(self, piece: Piece, drop: Drop) -> Iterator[Document]:
        lines: list[str] = []
        first, size = piece.line, 0
        empty = True
        for number, line in self._plain_lines(piece, drop):
            blank = not line.strip()
            if lines and ((blank and not self._whole_files) or size > _LONGEST_DOCUMENT):
                yield Document(piece.source, first, "\n".join(lines))
                lines, size = [], 0
            if lines or not blank:
                first = first if lines else number
                lines.append(line)
                size += len(line) + 1
                empty = False
        if lines:
            yield Document(piece.source, first, "\n".join(lines))
        elif empty and self._whole_files:
            drop(piece.source, piece.line, EMPTY, "")

    def _plain_lines(self, piece: Piece, drop: Drop) -> Iterator[tuple[int, str]]:
        for number, line in self._lines(piece, drop):
            if line.isascii():
                yield number, line
            else:
                yield from ((number, part) for part in _LINE_ENDS.split(line))

    def _records(self, piece: Piece, drop: Drop) -> Iterator[tuple[int, object]]:
        """Yield the line and the text of each record; the text can be anything."""
        for number, line in self._lines(piece, drop):
            if not line.strip():
                continue
            try:
                record = parse_json(line)
            except ValueError as error:
                drop(piece.source, number, NOT_JSON, str(error))
                continue
            yield number, record.get(self._text_field) if isinstance(record, dict) else None

    def _rows(self, piece: Piece, drop: Drop) -> Iterator[tuple[int, object]]:
        """Yield the number and the text of each row; the text can be anything."""
        piece.source.check_unchanged()
        values = read_rows(Path(piece.source.shown), self._text_field, piece.start, piece.stop)
        for number, value in enumerate(values, start=piece.line):
            if isinstance(value, UnicodeDecodeError):
                drop(piece.source, number, NOT_UTF8, value.reason)
            elif isinstance(value, OverflowError):
                drop(piece.source, number, TOO_LONG, "")
            else:
                yield number, value

    def _lines(self, piece: Piece, drop: Drop) -> Iterator[tuple[int, str]]:
        """Yield the number of each line of a piece that is text, and the line without its end."""
        content = self._contents.at(piece.source, piece.start)
        for number, line in enumerate(_raw_lines(content, piece.stop - piece.start), start=piece.line):
            if line is None:
                drop(piece.source, number, TOO_LONG, "")
            elif b"\0" in line:
                drop(piece.source, number, NUL, "")
            else:
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    drop(piece.source, number, NOT_UTF8, error.reason)


def read_documents(
    inputs: Sequence[str | Path], text_field: str = "text", whole_files: bool = False, drop: Drop = refuse
) -> Iterator[Document]:
    """Yield the documents of `inputs`, one after another, holding one in memory at a time.

    An input is a `.txt` file (a blank line separates documents, unless `whole_files`), a `.jsonl` file (one object a
    line, the text in its field `text_field`), either of them with `.gz` or `.zst`, a `.parquet` file with such a
    column, a folder of such files, or the word `python-docs`: the documentation of this Python. `drop` receives
    whatever cannot be used; by default it raises `DataError`. Raises `DataError` on an input that is missing.
    """
    reader = Reader(text_field, whole_files)
    try:
        for source in find_sources(inputs)[0]:
            for piece in pieces_of(source, scan(source, LONGEST_LINE, text_field, whole_files), drop):
                yield from reader.documents(piece, drop)
    finally:
        reader.close()


def _usable(source: Source, texts: Iterable[tuple[int, object]], drop: Drop) -> Iterator[Document]:
    for line, text in texts:
        if not isinstance(text, str):
            drop(source, line, NO_TEXT, "")
        elif "\0" in text:
            drop(source, line, NUL, "")
        elif not text.strip():
            drop(source, line, EMPTY, "")
        elif not _encodable(text):
            drop(source, line, SURROGATE, "")
        else:
            yield Document(source, line, text)


def _raw_lines(content: BinaryIO, length: int) -> Iterator[bytes | None]:
    """Yield the lines of the next `length` bytes, with their ends; None for a line that is too long to hold."""
    while length > 0:
        line = content.readline(min(length, LONGEST_LINE + 1))
        read, too_long = len(line), len(line) > LONGEST_LINE
        while line and too_long and not line.endswith(b"\n") and read < length:
            line = content.readline(min(length - read, 1 << 20))
            read += len(line)
        if not line:
            raise EOFError("it is shorter than it was")
        length -= read
        yield None if too_long else line


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
