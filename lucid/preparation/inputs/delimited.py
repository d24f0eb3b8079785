"""CSV and TSV: a row is a document, and its text is in the column that the first row names so.

Cells of CSV may be quoted, and then hold line breaks, marks and doubled quotes (RFC 4180). A line of TSV is a row, and
a quote is text unless another ends the cell. A file is cut into pieces between rows, which are found from its start on.
Bytes are read as Latin-1, in which each is a character, until the cell with the text is known.
"""

import csv
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import BinaryIO

from lucid.preparation.inputs.kinds import TSV
from lucid.preparation.inputs.omissions import (
    DAMAGED_ROW,
    LONGEST_LINE,
    NOT_UTF8,
    TOO_LONG,
    Drop,
    check_utf8,
    no_column,
)
from lucid.preparation.inputs.pieces import Cut, Layout, Piece, raw_lines
from lucid.preparation.inputs.sources import Source

# In the order in which they are tried. Spreadsheets write semicolons where a comma is the decimal point.
_DELIMITERS = ",;\t|"
# Ends a row in any state of the library: it closes an open cell, and after a closed one it is an error.
_END_OF_ROW = '"" "\n'
# Of TSV: a whole cell that is quoted, and any cell.
_QUOTED = re.compile(r'"((?:[^"]|"")*+)"')
_CELL = re.compile(rf"(?:\A|\t)({_QUOTED.pattern}(?=\t|\Z)|[^\t]*)")


class _Rows:
    """The rows of lines of CSV or TSV: their cells; None for a row that is too long, and an error for a damaged one.

    `read` and `lines` are the bytes and the lines of the rows so far.
    """

    def __init__(self, lines: Iterable[tuple[bytes | None, int]], source: Source, layout: Layout) -> None:
        _allow_long_cells()
        self._rows: Iterator[list[str]]
        if source.kind == TSV:
            self._rows = (_tsv_cells(text, layout.columns) for text in self._texts(lines))
        else:
            self._rows = csv.reader(self._texts(lines), delimiter=layout.delimiter, strict=True)
        self.read = self.lines = self._row_bytes = 0
        self._too_long = False

    def __iter__(self) -> "_Rows":
        return self

    def __next__(self) -> list[str] | csv.Error | None:
        self._row_bytes, self._too_long = 0, False
        found: list[str] | csv.Error
        try:
            found = next(self._rows)
        except csv.Error as error:
            found = error
        return None if self._too_long else found

    def _texts(self, lines: Iterable[tuple[bytes | None, int]]) -> Iterator[str]:
        for line, size in lines:
            self.read, self.lines, self._row_bytes = self.read + size, self.lines + 1, self._row_bytes + size
            self._too_long = self._row_bytes > LONGEST_LINE
            yield _END_OF_ROW if line is None or self._too_long else line.decode("latin-1")


def _tsv_cells(line: str, columns: int) -> list[str]:
    """Return the cells of a row; none of a blank line."""
    line = line.rstrip("\r\n")
    cells = line.split("\t") if line else []
    if '"' in line:
        if len(cells) > columns:  # tabs may stand between quotes
            cells = [cell[1] for cell in _CELL.finditer(line)]
        quoted = map(_QUOTED.fullmatch, cells)
        cells = [match[1].replace('""', '"') if match else cell for match, cell in zip(quoted, cells, strict=True)]
    return cells


def cut_rows(content: BinaryIO, source: Source, piece_bytes: int) -> tuple[Layout, tuple[Cut, ...]]:
    """Return the layout of a file and where its pieces start and end: before the first row, and after rows.

    Raises `UnusableFileError` if no column has the name that is looked for, and `EOFError` if the first row is damaged.
    """
    lines = raw_lines(content)
    head = list(islice(lines, 1))
    layout = _layout([line for line, _ in head if line is not None], source)
    rows = _Rows(chain(head, lines), source, layout)
    cuts = [(0, 1)]
    for _ in rows:
        if rows.read - cuts[-1][0] >= piece_bytes:
            cuts.append((rows.read, rows.lines + 1))
    if rows.read > cuts[-1][0]:
        cuts.append((rows.read, rows.lines + 1))
    return layout, tuple(cuts)


def _allow_long_cells() -> None:
    """Let `csv` read cells as long as a line may be. Its own limit is 128 KiB, and counts for the whole process."""
    csv.field_size_limit(LONGEST_LINE)


def _layout(head: Sequence[bytes], source: Source) -> Layout:
    _allow_long_cells()
    found: list[str] = []
    # The byte order mark is no part of the first name.
    texts = [line.decode("utf-8-sig", errors="replace") for line in head]
    for delimiter in "\t" if source.kind == TSV else _DELIMITERS:
        try:
            if source.kind == TSV:
                cells = _tsv_cells(texts[0], sys.maxsize) if texts else []
            else:
                cells = next(csv.reader(texts, delimiter=delimiter), [])
        except csv.Error as error:
            raise EOFError(f"its first line cannot be read: {error}") from error
        found = found or cells
        if source.field in cells:
            return Layout(delimiter, cells.index(source.field), len(cells))
    check_utf8(head[0] if head else b"")
    raise no_column(source, found)


def _damage(error: csv.Error) -> str:
    """Return what is wrong with a row. The module `csv` names the symptom of a quote that never closes."""
    return "a quote never closes" if str(error) == "unexpected end of data" else str(error)


def csv_rows(content: BinaryIO, piece: Piece, drop: Drop) -> Iterator[tuple[int, str]]:
    """Yield the first line of each row and its text."""
    layout = piece.layout
    assert layout is not None
    rows = _Rows(raw_lines(content, piece.stop - piece.start), piece.source, layout)
    line = piece.line
    for cells in rows:
        number, line = line, piece.line + rows.lines
        if number == 1 or cells == []:  # the names of the columns, and blank lines
            continue
        if cells is None:
            drop(piece.source, number, TOO_LONG, "")
        elif isinstance(cells, csv.Error):
            drop(piece.source, number, DAMAGED_ROW, _damage(cells))
        elif len(cells) != layout.columns:
            drop(piece.source, number, DAMAGED_ROW, f"it has {len(cells)} cells of {layout.columns}")
        else:
            try:
                yield number, cells[layout.column].encode("latin-1").decode()
            except UnicodeDecodeError as error:
                drop(piece.source, number, NOT_UTF8, error.reason)
