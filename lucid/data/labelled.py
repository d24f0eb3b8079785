"""Reads labelled texts: a text or a pair of texts with a label in each row of a .tsv, .csv or .jsonl file.

Unlike the documents of a corpus they are few, are read whole, and keep the order of their file.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lucid.errors import DataError, some
from lucid.files import reason_of, split_packing
from lucid.json_values import parse_json
from lucid.unpacking import READ_ERRORS, opened_unpacked

# Bytes of a line.
_LONGEST_LINE = 1 << 24
# The columns that are looked for if the caller names none: those of GLUE and other public data sets.
_PAIRS = ("text", "pair"), ("sentence1", "sentence2"), ("premise", "hypothesis")
_TEXTS = "text", "sentence"
_LABEL = "label"
# The columns of a .tsv or .csv file without a first row of names, by the number of its cells.
_WITHOUT_NAMES = {2: ("text", "label"), 3: ("text", "pair", "label")}
# A column with more labels than rows / 2 holds something else. Fewer rows than this say nothing.
_FEW_ROWS = 20
# A whole cell between quotes, in which quotes are doubled: what spreadsheets write into .tsv files.
_QUOTED = re.compile(r'"((?:[^"]|"")*+)"')

# The cells of a row by the names of their columns, or what is wrong with the row.
_Row = Mapping[str, object] | str


class Columns(NamedTuple):
    """The names of the columns that hold text, second text (None: there is none) and label."""

    text: str
    pair: str | None
    label: str


@dataclass(frozen=True)
class LabelledTexts:
    """The usable rows of the file `path`, in its order. `pairs` are the second texts, None if there are none.

    `remarks` has one sentence for each kind of rows that are left out.
    """

    path: Path
    texts: list[str]
    pairs: list[str] | None
    labels: list[str]
    remarks: list[str]

    @cached_property
    def label_names(self) -> list[str]:
        """The distinct labels in order: by their value if all are whole numbers, by their letters otherwise."""
        return in_order(set(self.labels))


def in_order(labels: Iterable[str]) -> list[str]:
    """Return labels in the order of their value if all are whole numbers, of their letters otherwise."""
    names = sorted(labels)
    return sorted(names, key=int) if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names) else names


def read_labelled(
    path: Path, *, text: str | None = None, pair: str | None = None, label: str | None = None
) -> LabelledTexts:
    """Read the labelled texts in a .tsv, .csv or .jsonl file of UTF-8, which may be compressed (`files.PACKINGS`).

    `text`, `pair` and `label` name its columns. Without names they are `label`, and the first that are there of `text`
    and `pair`, `sentence1` and `sentence2`, `premise` and `hypothesis`, `text`, `sentence`. In .tsv and .csv the first
    row names the columns. Where it has no cell `label` and no names are given, a file with two columns has text and
    label, one with three has text, pair and label, and the first row is data. Labels are texts, whole numbers, true or
    false.

    Raises `DataError`, with the line where there is one, if the file cannot be read, lacks a column, or has no usable
    row.
    """
    asked = text, pair, label
    read = {".tsv": _tsv_rows, ".csv": _csv_rows, ".jsonl": _json_rows}.get(suffix_of(path))
    if read is None:
        raise DataError(f"{path} has the wrong kind: labelled texts are read from .tsv, .csv and .jsonl files")
    try:
        with opened_unpacked(path) as file:
            columns, rows = read(path, file, asked)
            return _collected(path, columns, rows)
    except READ_ERRORS as error:
        raise DataError(f"{path} cannot be read: {reason_of(error)}") from error
    except csv.Error as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def suffix_of(path: Path) -> str:
    """Return the suffix of a file's name in lower case, before the suffix of a compression."""
    return split_packing(path)[0].suffix.lower()


_Asked = tuple[str | None, str | None, str | None]
_Rows = tuple[Columns, Iterator[tuple[int, _Row]]]


def text_lines(path: Path, file: BinaryIO) -> Iterator[str]:
    """Yield the lines with their ends. Bytes that are not UTF-8 become surrogates, which `_fault` finds.

    Raises `DataError` for a line that is too long, and for one with a NUL byte, as UTF-16 has.
    """
    number = 0
    while line := file.readline(_LONGEST_LINE + 1):
        number += 1
        if b"\0" in line:
            raise DataError(f"{path}:{number}: NUL bytes, which text does not have: convert the file if it is UTF-16")
        if len(line) > _LONGEST_LINE:
            raise DataError(f"{path}:{number}: longer than {_LONGEST_LINE >> 20} MiB: break it")
        yield line.decode("utf-8-sig" if number == 1 else "utf-8", errors="surrogateescape")


def _json_rows(path: Path, file: BinaryIO, asked: _Asked) -> _Rows:
    lines = ((number, line) for number, line in enumerate(text_lines(path, file), start=1) if line.strip())
    found = ((number, _json_row(line)) for number, line in lines)
    first = next(((number, row) for number, row in found if not isinstance(row, str)), None)
    if first is None:
        raise DataError(f"{path} has no line that is a JSON object: write one such object a line")
    file.seek(0)
    columns = _columns(f"{path}:{first[0]}", list(first[1]), asked)
    return columns, ((number, _json_row(line)) for number, line in enumerate(text_lines(path, file), start=1))


def _json_row(line: str) -> _Row:
    try:
        row = parse_json(line) if line.strip() else {}
    except ValueError:
        row = None
    return row if isinstance(row, dict) else "that are no JSON object"


def _tsv_rows(path: Path, file: BinaryIO, asked: _Asked) -> _Rows:
    lines = (line.rstrip("\r\n") for line in text_lines(path, file))
    cells = ([_unquoted(cell) for cell in line.split("\t")] if line else [] for line in lines)
    return _with_names(path, enumerate(cells, start=1), asked)


def _unquoted(cell: str) -> str:
    """Return the text of a cell of TSV. A quote is text, unless quotes enclose the whole cell."""
    quoted = _QUOTED.fullmatch(cell)
    return quoted[1].replace('""', '"') if quoted else cell


def _csv_rows(path: Path, file: BinaryIO, asked: _Asked) -> _Rows:
    csv.field_size_limit(_LONGEST_LINE)  # of the whole process; its default is 128 KiB
    # Spreadsheets write semicolons where a comma is the decimal point.
    first = next(text_lines(path, file), "")
    wanted = asked[2] or _LABEL
    delimiter = next((mark for mark in ",;\t" if wanted in next(csv.reader([first], delimiter=mark), [])), ",")
    file.seek(0)
    return _with_names(path, _csv_cells(path, file, delimiter), asked)


def _csv_cells(path: Path, file: BinaryIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line of each row and its cells. Raises `DataError` for a quote that never closes."""
    reader = csv.reader(text_lines(path, file), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # The module names the symptom.
            what = "a quote never closes" if str(error) == "unexpected end of data" else str(error)
            raise DataError(f"{path}:{line}: {what}: mend this row") from error


def _with_names(path: Path, rows: Iterator[tuple[int, list[str]]], asked: _Asked) -> _Rows:
    """Return the columns of a table and its rows of data. The first row has the names, or is data itself."""
    number, head = next(((number, cells) for number, cells in rows if cells), (1, []))
    start: list[tuple[int, list[str]]] = []
    if asked == (None, None, None) and _LABEL not in head and len(head) in _WITHOUT_NAMES:
        head, start = list(_WITHOUT_NAMES[len(head)]), [(number, head)]
    columns = _columns(f"{path}:{number}", head, asked)

    def named() -> Iterator[tuple[int, _Row]]:
        for each in (start, rows):
            for line, cells in each:
                if len(cells) == len(head):
                    yield line, dict(zip(head, cells, strict=True))
                else:
                    yield line, f"that do not have {len(head)} cells" if cells else {}

    return columns, named()


def _columns(where: str, names: Sequence[str], asked: _Asked) -> Columns:
    """Return the columns among `names`. Raises `DataError` if one is missing, or there twice."""
    text, pair, label = asked
    if text is None:
        pairs = ((first, second) for first, second in _PAIRS if second == pair or (pair is None and second in names))
        singles = ((first, pair) for first in _TEXTS)
        text, pair = next((found for found in (*pairs, *singles) if found[0] in names), (_TEXTS[0], pair))
    columns = Columns(text, pair, label or _LABEL)
    for name in columns:
        if name is not None and names.count(name) != 1:
            how = "two columns are" if name in names else "no column is"
            raise DataError(
                f"{where}: {how} called {name!r}: the columns are {some(list(map(repr, names))) or 'none'}; a table "
                "without names has text and label, or text, pair and label"
            )
    return columns


def _collected(path: Path, columns: Columns, rows: Iterable[tuple[int, _Row]]) -> LabelledTexts:
    found: list[tuple[str, str, str]] = []
    faults: dict[str, list[int]] = {}
    first = 0
    for line, row in rows:
        if row == {}:  # a blank line
            continue
        fault = row if isinstance(row, str) else _fault(columns, row)
        if fault is None and not isinstance(row, str):
            pair = "" if columns.pair is None else str(row[columns.pair])
            first = first or line
            found.append((str(row[columns.text]), pair, _label(row[columns.label])))
        elif fault is not None:
            faults.setdefault(fault, []).append(line)
    remarks = [
        f"{path}:{lines[0]}: rows {fault} are left out ({len(lines):,}, this is the first)"
        for fault, lines in faults.items()
    ]
    if not found:
        raise DataError(f"{path} has no usable row" + "".join(f"; {remark}" for remark in remarks[:1]))
    texts, pairs, labels = map(list, zip(*found, strict=True))
    _check_labels(path, labels, names_are_data=suffix_of(path) != ".jsonl" and first == 1)
    return LabelledTexts(path, texts, pairs if columns.pair is not None else None, labels, remarks)


def _fault(columns: Columns, row: Mapping[str, object]) -> str | None:
    """Return what is wrong with a row, None if nothing is."""
    for name in (columns.text, columns.pair):
        value = row.get(name) if name is not None else "-"
        if not isinstance(value, str) or not value.strip():
            return f"without {name!r}"
    label = _label(row.get(columns.label))
    if not label:
        return f"without {columns.label!r}"
    texts = [str(row[name]) for name in (columns.text, columns.pair) if name is not None]
    if any(value.encode("utf-8", errors="replace").decode() != value for value in (*texts, label)):
        return "that are not UTF-8"
    return None


def _label(value: object) -> str:
    """Return a label as text, "" if `value` is none."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).strip() if isinstance(value, str | int) else ""


def _check_labels(path: Path, labels: Sequence[str], names_are_data: bool) -> None:
    """Raise `DataError` if the labels of many rows look like something else; `names_are_data`: so is the first row."""
    kinds = len(set(labels))
    if len(labels) < _FEW_ROWS:
        return
    if names_are_data and labels.count(labels[0]) == 1:
        raise DataError(
            f"{path}:1: this row is read as data, but no other has the label {labels[0]!r}: if it names the columns, "
            "call them text, pair and label"
        )
    if kinds > len(labels) / 2:
        raise DataError(
            f"{path} has {kinds:,} different labels in {len(labels):,} rows: the column of labels, the last one in a "
            "table without names, holds something else"
        )
