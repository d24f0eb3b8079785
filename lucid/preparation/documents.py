"""Reads documents out of pieces of text files, JSON lines and tables, or out of the documentation of Python itself.

What cannot be used, a line that is not UTF-8 for instance, is told with its file and line, and left out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lucid.errors import DataError
from lucid.files import parse_json
from lucid.preparation.python_docs import python_documents
from lucid.preparation.sources import (
    LONGEST_LINE,
    PARQUET,
    PYTHON_DOCS,
    READ_ERRORS,
    Contents,
    Scan,
    Source,
    find_sources,
    reason_of,
    scan,
)
from lucid.preparation.tables import read_rows

# Characters after which a document of plain text without blank lines goes on as a new one: memory stays bounded.
_LONGEST_DOCUMENT = 1 << 22

TOO_LONG = f"longer than {LONGEST_LINE >> 20} MiB"
NOT_UTF8, NUL, NOT_JSON, SURROGATE = "not UTF-8", "NUL bytes", "not JSON", "half a surrogate pair"
NO_TEXT, EMPTY, UNREADABLE = "no text", "empty document", "unreadable file"
_ADVICE = {
    TOO_LONG: "break it into more lines (in .txt, as with fold -s)",
    NOT_UTF8: "convert the file, as with iconv",
    NUL: "this may not be text: mend or remove it",
    NOT_JSON: "mend or remove the line",
    SURROGATE: "mend or remove the line",
    NO_TEXT: "each record needs a field (--text-field) that is a string",
    EMPTY: "remove it",
    UNREADABLE: "check that it is there and readable, or get it again",
}

# Told of what is left out: where it is, the line, the reason, and more about that if there is more.
Drop = Callable[[Source, int, str, str], None]


@dataclass(frozen=True)
class Document:
    """One text; `source` and `line` say where it came from."""

    source: Source
    line: int
    text: str


@dataclass(frozen=True)
class Piece:
    """What is read in one go: `start` to `stop` of a source's content in bytes, or a table's rows.

    `line` is the number of its first line, and `size` says how many bytes it has.
    """

    source: Source
    start: int
    stop: int
    line: int
    size: int


def refuse(source: Source, line: int, reason: str, detail: str) -> None:
    """The `Drop` that leaves nothing out: raise `DataError`, with where it is and what to do."""
    more = f" ({detail})" if detail else ""
    raise DataError(f"{source.shown}:{line}: {reason}{more}: {_ADVICE[reason]}")


@dataclass(frozen=True)
class Reader:
    """How documents are found. In JSON lines and tables the text is in `text_field`; `drop` is told what is left out.

    In plain text a blank line ends a document, or with `whole_files` only the file's end does.
    """

    text_field: str = "text"
    whole_files: bool = False
    drop: Drop = refuse

    def pieces(self, source: Source, found: Scan) -> list[Piece]:
        """Return the pieces of a source as `scan` has cut it."""
        if not found.cuts:
            self.drop(source, 1, UNREADABLE, found.problem or "")
        elif len(found.cuts) == 1:
            self.drop(source, 1, EMPTY, "")
        bytes_per_step = found.content_bytes / max(found.cuts[-1][0], 1) if found.cuts else 0
        return [
            Piece(source, start, stop, line, round((stop - start) * bytes_per_step))
            for (start, line), (stop, _) in zip(found.cuts, found.cuts[1:], strict=False)
        ]

    def documents(self, piece: Piece, contents: Contents) -> Iterator[Document]:
        """Yield the documents of a piece in order, holding one at a time. `contents` keeps its file open."""
        if piece.source.kind == PYTHON_DOCS:
            yield from (Document(piece.source, 1, text) for _, text in python_documents())
            return
        reads = {PARQUET: self._rows, ".jsonl": self._records}.get(piece.source.kind, self._paragraphs)
        try:
            yield from reads(piece, contents)
        except READ_ERRORS as error:
            contents.close()
            self.drop(piece.source, piece.line, UNREADABLE, reason_of(error))

    def _paragraphs(self, piece: Piece, contents: Contents) -> Iterator[Document]:
        lines: list[str] = []
        first, size = piece.line, 0
        empty = True
        for number, line in self._lines(piece, contents):
            blank = not line.strip()
            if lines and ((blank and not self.whole_files) or size > _LONGEST_DOCUMENT):
                yield Document(piece.source, first, "\n".join(lines))
                lines, size = [], 0
            if lines or not blank:
                first = first if lines else number
                lines.append(line)
                size += len(line) + 1
                empty = False
        if lines:
            yield Document(piece.source, first, "\n".join(lines))
        elif empty and self.whole_files:
            self.drop(piece.source, piece.line, EMPTY, "")

    def _records(self, piece: Piece, contents: Contents) -> Iterator[Document]:
        for number, line in self._lines(piece, contents):
            if not line.strip():
                continue
            try:
                record = parse_json(line)
            except ValueError as error:
                self.drop(piece.source, number, NOT_JSON, str(error))
                continue
            text = record.get(self.text_field) if isinstance(record, dict) else None
            yield from self._checked(piece.source, number, text)

    def _rows(self, piece: Piece, contents: Contents) -> Iterator[Document]:
        piece.source.check_unchanged()
        values = read_rows(Path(piece.source.shown), self.text_field, piece.start, piece.stop)
        for number, value in enumerate(values, start=piece.line):
            if isinstance(value, UnicodeDecodeError):
                self.drop(piece.source, number, NOT_UTF8, value.reason)
            else:
                yield from self._checked(piece.source, number, value)

    def _checked(self, source: Source, line: int, text: object) -> Iterator[Document]:
        """Yield the document of a record, if its text can be used."""
        if not isinstance(text, str):
            self.drop(source, line, NO_TEXT, "")
        elif "\0" in text:
            self.drop(source, line, NUL, "")
        elif not text.strip():
            self.drop(source, line, EMPTY, "")
        elif not _encodable(text):
            self.drop(source, line, SURROGATE, "")
        else:
            yield Document(source, line, text)

    def _lines(self, piece: Piece, contents: Contents) -> Iterator[tuple[int, str]]:
        """Yield the lines of a piece that are text, without their ends, with their numbers."""
        for number, line in enumerate(_raw_lines(piece, contents), start=piece.line):
            if line is None:
                self.drop(piece.source, number, TOO_LONG, "")
                continue
            if b"\0" in line:
                self.drop(piece.source, number, NUL, "")
                continue
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                self.drop(piece.source, number, NOT_UTF8, error.reason)


def read_documents(
    inputs: Sequence[str | Path], text_field: str = "text", whole_files: bool = False, drop: Drop = refuse
) -> Iterator[Document]:
    """Yield the documents of `inputs`, one after another, holding one in memory at a time.

    An input is a `.txt` file (a blank line separates documents, unless `whole_files`), a `.jsonl` file (one object a
    line, the text in its field `text_field`), either of them with `.gz` or `.zst`, a `.parquet` file with such a
    column, a folder of such files, or the word `python-docs`: the documentation of this Python. Raises `DataError` on
    an input that is missing; `drop` is told what else cannot be used, and by default refuses it by a `DataError`.
    """
    reader, contents = Reader(text_field, whole_files, drop), Contents()
    try:
        for source in find_sources(inputs):
            for piece in reader.pieces(source, scan(source, LONGEST_LINE, text_field, whole_files)):
                yield from reader.documents(piece, contents)
    finally:
        contents.close()


def _raw_lines(piece: Piece, contents: Contents) -> Iterator[bytes | None]:
    """Yield the lines of a piece, with their ends; None for one that is too long to hold."""
    file: BinaryIO = contents.at(piece.source, piece.start)
    left = piece.stop - piece.start
    while left > 0:
        line = file.readline(min(left, LONGEST_LINE + 1))
        read, too_long = len(line), len(line) > LONGEST_LINE
        while line and too_long and not line.endswith(b"\n") and read < left:
            line = file.readline(min(left - read, 1 << 20))
            read += len(line)
        if not line:
            raise EOFError("it is shorter than it was")
        contents.passed(read)
        left -= read
        yield None if too_long else line


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
