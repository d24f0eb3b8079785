"""Pieces of files, which processes read side by side, and the content of a file from any byte on.

A piece begins with a line, in plain text with a document, and in a table or CSV with a row. Where the cuts are depends
on the inputs alone.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lucid.files import open_file
from lucid.preparation.inputs.omissions import EMPTY, LONGEST_LINE, NOT_UTF8, NUL, TOO_LONG, UNREADABLE, Drop
from lucid.preparation.inputs.sources import Source
from lucid.unpacking import unpacked

# A cut: (offset, line), or in tables (row, row + 1).
Cut = tuple[int, int]
# Bytes that are read at once while a file is cut into pieces.
_SCANNED_AT_ONCE = 1 << 20
# What a page of HTML says about its encoding.
_CHARSET = re.compile(rb"charset\s*=\s*[\"']?([\w-]+)", re.ASCII)
# More bytes than a file has.
_ENDLESS = 1 << 62


@dataclass(frozen=True)
class Layout:
    """The rows of a CSV file: the mark between two cells, the place of the text among the cells, and their number."""

    delimiter: str
    column: int
    columns: int


@dataclass(frozen=True)
class Scan:
    """The result of reading a source once: its SHA-256, the bytes of its unpacked content, and where its pieces start.

    The last cut is the end. A source that cannot be read has no cuts, and `reason` and `problem` say why. `layout` is
    for the reader of the pieces of CSV.
    """

    sha256: str = ""
    content_bytes: int = 0
    cuts: tuple[Cut, ...] = ()
    problem: str = ""
    reason: str = UNREADABLE
    layout: Layout | None = None


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
    layout: Layout | None = None


def pieces_of(source: Source, found: Scan, drop: Drop) -> list[Piece]:
    """Return the pieces into which a source is cut."""
    if not found.cuts:
        drop(source, 1, found.reason, found.problem)
    elif len(found.cuts) == 1:
        drop(source, 1, EMPTY, "")
    bytes_per_step = found.content_bytes / max(found.cuts[-1][0], 1) if found.cuts else 0
    return [
        Piece(source, start, stop, line, round((stop - start) * bytes_per_step), found.layout)
        for (start, line), (stop, _) in zip(found.cuts, found.cuts[1:], strict=False)
    ]


def cuts_after_lines(content: BinaryIO, piece_bytes: int, between_documents: bool = False) -> Iterator[Cut]:
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


class Contents:
    """Opens the unpacked content of files at any byte. The last file stays open, so that reading on costs nothing.

    A compressed file can only be read from its start: everything before the byte is unpacked and thrown away.
    """

    def __init__(self) -> None:
        self._path = ""
        self._file: BinaryIO | None = None
        self._content: BinaryIO | None = None

    def of(self, piece: Piece) -> BinaryIO:
        """Return the content of a source from the start of a piece on. Raises `OSError` if the file is gone."""
        source = piece.source
        assert source.path is not None
        source.check_unchanged()
        if self._content is None or self._path != source.path:
            self.close()
            self._file = open_file(Path(source.path))
            self._path, self._content = source.path, unpacked(self._file, source.packing)
        self._content.seek(piece.start)
        return self._content

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()
        self._file = self._content = None


def raw_lines(content: BinaryIO, length: int | None = None) -> Iterator[tuple[bytes | None, int]]:
    """Yield the lines of the next `length` bytes, or of all, with their ends, and the bytes of each.

    None stands for a line that is too long to hold. Raises `EOFError` if the content ends before `length` bytes.
    """
    left = _ENDLESS if length is None else length
    while left > 0:
        line = content.readline(min(left, LONGEST_LINE + 1))
        read, too_long = len(line), len(line) > LONGEST_LINE
        while line and too_long and not line.endswith(b"\n") and read < left:
            line = content.readline(min(left - read, 1 << 20))
            read += len(line)
        if not read:
            if length is None:
                return
            raise EOFError("it is shorter than it was")
        left -= read
        yield (None if too_long else line), read


def lines_of(content: BinaryIO, piece: Piece, drop: Drop) -> Iterator[tuple[int, str]]:
    """Yield the number of each line of a piece that is text, and the line without its end."""
    for number, (line, _) in enumerate(raw_lines(content, piece.stop - piece.start), start=piece.line):
        if line is None:
            drop(piece.source, number, TOO_LONG, "")
        elif b"\0" in line:
            drop(piece.source, number, NUL, "")
        else:
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                drop(piece.source, number, NOT_UTF8, error.reason)


def whole_text(content: BinaryIO, piece: Piece, drop: Drop) -> str | None:
    """Return the text of a piece that is a whole file; None if it cannot be used."""
    found = content.read(min(piece.stop - piece.start, LONGEST_LINE + 1))
    if len(found) > LONGEST_LINE:
        drop(piece.source, piece.line, TOO_LONG, "")
        return None
    try:
        text = found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        declared = _CHARSET.search(found)
        more = f"; it says that it is {declared[1].decode()}" if declared else ""
        drop(piece.source, 1 + found[: error.start].count(b"\n"), NOT_UTF8, error.reason + more)
        return None
    if "\0" in text:
        drop(piece.source, 1 + text[: text.index("\0")].count("\n"), NUL, "")
        return None
    return text
