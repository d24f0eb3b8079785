"""Reads documents from pieces of files of every kind, or from the documentation of Python itself.

Text that cannot be used, such as a line that is not UTF-8, is left out and reported with its file and line.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from lucid.files import open_file, reason_of, sha256_of
from lucid.preparation.inputs.delimited import csv_rows, cut_rows
from lucid.preparation.inputs.kinds import CSV, HTML, JSON_LINES, MARKDOWN, PYTHON_DOCS, TABLES, TEXT, TSV
from lucid.preparation.inputs.markup import html_text, markdown_text
from lucid.preparation.inputs.omissions import (
    EMPTY,
    LONGEST_LINE,
    NO_IDS,
    NO_TEXT,
    NUL,
    SURROGATE,
    UNREADABLE,
    Drop,
    UnusableFileError,
    refuse,
)
from lucid.preparation.inputs.pieces import Contents, Piece, Scan, cuts_after_lines, lines_of, pieces_of, whole_text
from lucid.preparation.inputs.plain_text import json_records, paragraphs
from lucid.preparation.inputs.python_docs import module_files, python_documents
from lucid.preparation.inputs.sources import Choice, Source, find_sources
from lucid.preparation.inputs.standard_input import spooled
from lucid.preparation.inputs.tables import cut_table, table_rows
from lucid.preparation.inputs.token_ids import TokenIds, token_ids
from lucid.unpacking import READ_ERRORS, Digested, unpacked

# Characters of documents that are worth a round of array operations.
_CHARACTERS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Document:
    """One text, or the ids of its tokens in its place; `source` and `line` say where it came from.

    Lines are counted from 1. A table has rows in place of lines, and the documentation of Python has documents.
    """

    source: Source
    line: int
    text: str
    ids: TokenIds | None = None

    @property
    def size(self) -> int:
        """Characters, or ids."""
        return len(self.text) if self.ids is None else len(self.ids.ids)

    def digest(self) -> bytes:
        """Return the SHA-256 of the text, or of the ids as 32-bit numbers (little-endian), in however many sentences.

        Its first 64 bits decide the split, its first 128 whether two documents are equal.
        """
        content = self.text.encode() if self.ids is None else self.ids.ids.astype("<u4").tobytes()
        return hashlib.sha256(content).digest()


def scan(source: Source, piece_bytes: int, whole_files: bool) -> Scan:
    """Read `source` once and cut it into pieces of `piece_bytes` bytes of content, or a little more."""
    if source.path is None:
        return _scan_python_docs()
    try:
        if source.kind in TABLES:
            digest = sha256_of(Path(source.path))
            return Scan(digest, *cut_table(source, piece_bytes))
        with open_file(Path(source.path)) as file:
            digested = Digested(file)
            content = unpacked(io.BufferedReader(digested, 1 << 20), source.packing)
            layout = None
            if source.kind in (CSV, TSV):
                layout, cuts = cut_rows(content, source, piece_bytes)
            else:
                ends = list(cuts_after_lines(content, piece_bytes, source.kind == TEXT and not whole_files))
                # A page of HTML or Markdown is one piece.
                cuts = ((0, 1), *(ends if source.kind in (TEXT, JSON_LINES) else ends[-1:]))
            return Scan(digested.digest.hexdigest(), cuts[-1][0], cuts, layout=layout)
    except UnusableFileError as error:
        return Scan(problem=str(error), reason=error.reason)
    except READ_ERRORS as error:
        return Scan(problem=reason_of(error))


def _scan_python_docs() -> Scan:
    digest, size = hashlib.sha256(), 0
    for path in module_files():
        content = path.read_bytes()
        digest.update(content)
        size += len(content)
    return Scan(digest.hexdigest(), size, ((0, 1), (size, 1)))


class Reader:
    """Reads the documents of pieces, and keeps the last file open.

    In plain text a blank line ends a document, or with `whole_files` only the end of the file does. With `each_line`
    every line is a document, a blank one too.
    """

    def __init__(self, whole_files: bool = False, each_line: bool = False) -> None:
        self._whole_files, self._each_line = whole_files, each_line
        self._contents = Contents()

    def documents(self, piece: Piece, drop: Drop) -> Iterator[Document]:
        """Yield the documents of a piece in order, holding one at a time."""
        try:
            if piece.source.holds_ids:
                yield from self._ids(piece, drop)
            else:
                for line, text in self._texts(piece, drop):
                    yield Document(piece.source, line, text)
        except READ_ERRORS as error:
            self.close()
            drop(piece.source, piece.line, UNREADABLE, reason_of(error))

    def close(self) -> None:
        """Close the file that is open."""
        self._contents.close()

    def _ids(self, piece: Piece, drop: Drop) -> Iterator[Document]:
        is_table = piece.source.kind in TABLES
        records = table_rows(piece, drop) if is_table else json_records(self._contents.of(piece), piece, drop)
        for line, value in records:
            ids = token_ids(value)
            if ids is None:
                drop(piece.source, line, NO_IDS, "")
            elif not len(ids.ids):
                drop(piece.source, line, EMPTY, "")
            else:
                yield Document(piece.source, line, "", ids)

    def _texts(self, piece: Piece, drop: Drop) -> Iterable[tuple[int, str]]:
        """Return the first line and the text of each document."""
        kind = piece.source.kind
        if kind == PYTHON_DOCS:
            return enumerate((text for _, text in python_documents()), start=1)
        if kind in TABLES:
            return _usable(piece.source, table_rows(piece, drop), drop)
        content = self._contents.of(piece)
        if kind == TEXT and self._each_line:
            return lines_of(content, piece, drop)
        if kind == TEXT:
            return paragraphs(content, piece, self._whole_files, drop)
        if kind == JSON_LINES:
            return _usable(piece.source, json_records(content, piece, drop), drop)
        if kind in (CSV, TSV):
            return _usable(piece.source, csv_rows(content, piece, drop), drop)
        text_of = {HTML: html_text, MARKDOWN: markdown_text}[kind]
        text = whole_text(content, piece, drop)
        return () if text is None else _usable(piece.source, [(piece.line, text_of(text))], drop)


def read_documents(
    inputs: Sequence[str | Path],
    text_field: str | Sequence[str] = "text",
    whole_files: bool = False,
    drop: Drop = refuse,
    kind: str | None = None,
    each_line: bool = False,
) -> Iterator[Document]:
    """Yield the documents of `inputs`, one after another, holding one in memory at a time.

    An input is a file, a folder of files, `-` for the standard input, or the word `python-docs`: the documentation of
    this Python. `docs/data.md` lists the kinds of files, and what is a document of each. See `Choice` for `text_field`
    and `kind`, and `Reader` for `whole_files` and `each_line`. `drop` receives whatever cannot be used; by default it
    raises `DataError`. Raises `DataError` on an input that is missing.
    """
    choice = Choice(text_field, kind=kind)
    reader = Reader(whole_files, each_line)
    with TemporaryDirectory() as folder, spooled(find_sources(inputs, choice)[0], Path(folder), choice) as sources:
        try:
            for source in sources:
                for piece in pieces_of(source, scan(source, LONGEST_LINE, whole_files), drop):
                    yield from reader.documents(piece, drop)
        finally:
            reader.close()


def blocks_of(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Gather documents until there is enough text to be worth a round of array operations."""
    block: list[Document] = []
    size = 0
    for document in documents:
        block.append(document)
        size += document.size
        if size >= _CHARACTERS_AT_ONCE:
            yield block
            block, size = [], 0
    if block:
        yield block


def _usable(source: Source, texts: Iterable[tuple[int, object]], drop: Drop) -> Iterator[tuple[int, str]]:
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
            yield line, text


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
