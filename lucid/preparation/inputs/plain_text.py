"""Plain text, whose documents are separated by blank lines, and JSON lines, of which each is a document."""

import re
from collections.abc import Iterator
from typing import BinaryIO

from lucid.json_values import parse_json
from lucid.preparation.inputs.omissions import EMPTY, NOT_JSON, Drop
from lucid.preparation.inputs.pieces import Piece, lines_of

# Characters after which a document of plain text without blank lines is cut, so that memory stays bounded.
_LONGEST_DOCUMENT = 1 << 22
# Other marks than line feeds that end a line of plain text.
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")


def paragraphs(content: BinaryIO, piece: Piece, whole_files: bool, drop: Drop) -> Iterator[tuple[int, str]]:
    """Yield the first line and the text of each document; with `whole_files` only the end of the file ends one."""
    lines: list[str] = []
    first, size = piece.line, 0
    empty = True
    for number, line in _plain_lines(content, piece, drop):
        blank = not line.strip()
        if lines and ((blank and not whole_files) or size > _LONGEST_DOCUMENT):
            yield first, "\n".join(lines)
            lines, size = [], 0
        if lines or not blank:
            first = first if lines else number
            lines.append(line)
            size += len(line) + 1
            empty = False
    if lines:
        yield first, "\n".join(lines)
    elif empty and whole_files:
        drop(piece.source, piece.line, EMPTY, "")


def _plain_lines(content: BinaryIO, piece: Piece, drop: Drop) -> Iterator[tuple[int, str]]:
    for number, line in lines_of(content, piece, drop):
        if line.isascii():
            yield number, line
        else:
            yield from ((number, part) for part in _LINE_ENDS.split(line))


def json_records(content: BinaryIO, piece: Piece, drop: Drop) -> Iterator[tuple[int, object]]:
    """Yield the line of each record and the value of its field; the value can be anything."""
    for number, line in lines_of(content, piece, drop):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            drop(piece.source, number, NOT_JSON, str(error))
            continue
        yield number, record.get(piece.source.field) if isinstance(record, dict) else None
