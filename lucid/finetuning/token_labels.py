"""Reads sentences whose words have labels: columns as CoNLL's shared tasks have them, or lists in JSON lines.

In columns a line is a word, white space separates its cells, the first of which is the word and the last its label, and
a blank line ends a sentence (Tjong Kim Sang & De Meulder, "Introduction to the CoNLL-2003 shared task", 2003).
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from lucid.data.labelled import suffix_of, text_lines
from lucid.errors import DataError
from lucid.files import reason_of
from lucid.json_values import parse_json
from lucid.unpacking import READ_ERRORS, opened_unpacked

_COLUMNS = (".conll", ".iob", ".iob2", ".bio", ".txt")
# CoNLL-2003 puts this in the place of a word before each document.
_DOCUMENT = "-DOCSTART-"
# Fields of JSON lines, in the order in which they are tried.
_WORDS, _LABELS = ("tokens", "words"), ("labels", "ner_tags", "tags", "label")

# Words and labels of sentences, and remarks.
Sentences = tuple[list[list[str]], list[list[str]], list[str]]


def holds_words(path: Path, label: str | None = None) -> bool:
    """Return whether a file has a label for each word: columns, by its name, or JSON lines with lists of labels."""
    suffix = suffix_of(path)
    if suffix in _COLUMNS:
        return True
    if suffix != ".jsonl":
        return False
    try:
        with opened_unpacked(path) as file:
            first = next((line for line in text_lines(path, file) if line.strip()), "")
    except READ_ERRORS as error:
        raise DataError(f"{path} cannot be read: {reason_of(error)}") from error
    row = _object(first)
    return row is not None and isinstance(row.get(_first_of(row, _LABELS, label)), list)


def read_token_labels(path: Path, word: str | None = None, label: str | None = None) -> Sentences:
    """Return the words and the labels of each sentence of a file, and a remark on each kind of what is left out.

    In columns `word` and `label` are numbers of columns, from 1; by default the first and the last. In .jsonl they name
    the fields with the lists; labels may be numbers. Raises `DataError` if the file cannot be read or has no sentence.
    """
    read = _json_sentences if suffix_of(path) == ".jsonl" else _column_sentences
    words: list[list[str]] = []
    labels: list[list[str]] = []
    faults: dict[str, list[int]] = {}
    try:
        for line, found in read(path, word, label):
            if isinstance(found, str):
                faults.setdefault(found, []).append(line)
            else:
                words.append(found[0])
                labels.append(found[1])
    except READ_ERRORS as error:
        raise DataError(f"{path} cannot be read: {reason_of(error)}") from error
    remarks = [
        f"{path}:{lines[0]}: sentences {fault} are left out ({len(lines):,}, this is the first)"
        for fault, lines in faults.items()
    ]
    if not words:
        raise DataError(f"{path} has no usable sentence" + "".join(f"; {remark}" for remark in remarks[:1]))
    return words, labels, remarks


# The first line of each sentence, and its words and labels, or what is wrong with it.
_Found = Iterator[tuple[int, tuple[list[str], list[str]] | str]]


def _column_sentences(path: Path, word: str | None, label: str | None) -> _Found:
    columns = 0
    start, rows = 1, list[list[str]]()
    with opened_unpacked(path) as file:
        for number, line in enumerate(chain(text_lines(path, file), "\n"), start=1):
            # Tabs alone separate cells where there are any, because a word may hold spaces.
            cells = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
            if not line.strip():
                if rows:
                    yield start, _sentence(rows, columns, word, label, path)
                start, rows = number + 1, []
            elif _is_comment(cells, rows, columns) or cells[0] == _DOCUMENT:
                start += not rows
            else:
                columns = columns or len(cells)
                rows.append(cells)


def _is_comment(cells: list[str], rows: list[list[str]], columns: int) -> bool:
    """Return whether cells are a comment: it stands before a sentence, and has other columns if any are known."""
    return not rows and cells[0].startswith("#") and len(cells) != columns


def _sentence(
    rows: list[list[str]], columns: int, word: str | None, label: str | None, path: Path
) -> tuple[list[str], list[str]] | str:
    if columns < 2:
        raise DataError(f"{path} has one column: each line needs a word and its label")
    first, last = (_column(given, name, columns, path) for given, name in ((word, "--text"), (label, "--label")))
    if any(len(cells) != columns for cells in rows):
        return f"that have a line without {columns} columns"
    return _utf8([cells[first] for cells in rows], [cells[last] for cells in rows])


def _column(given: str | None, option: str, columns: int, path: Path) -> int:
    """Return the index of a column that an option gives as a number from 1; by default the first or the last."""
    if given is None:
        return 0 if option == "--text" else columns - 1
    if not given.isdecimal() or not 1 <= int(given) <= columns:
        raise DataError(f"{option} is {given!r}, but the columns of {path} are numbered from 1 to {columns}")
    return int(given) - 1


def _json_sentences(path: Path, word: str | None, label: str | None) -> _Found:
    with opened_unpacked(path) as file:
        for number, line in enumerate(text_lines(path, file), start=1):
            if not line.strip():
                continue
            row = _object(line)
            yield number, "that are no JSON object" if row is None else _listed(row, word, label)


def _listed(row: dict[str, object], word: str | None, label: str | None) -> tuple[list[str], list[str]] | str:
    names = _first_of(row, _WORDS, word), _first_of(row, _LABELS, label)
    words, labels = (row.get(name) for name in names)
    if not (isinstance(words, list) and words and all(isinstance(each, str) and each.strip() for each in words)):
        return f"without a list of words in {names[0]!r}"
    if not (isinstance(labels, list) and all(isinstance(each, str | int) for each in labels)):
        return f"without a list of labels in {names[1]!r}"
    if len(words) != len(labels):
        return "with another number of labels than words"
    return _utf8(list(words), list(map(str, labels)))


def _utf8(words: list[str], labels: list[str]) -> tuple[list[str], list[str]] | str:
    is_utf8 = all(text.encode(errors="replace").decode() == text for text in (*words, *labels))
    return (words, labels) if is_utf8 else "that are not UTF-8"


def _object(line: str) -> dict[str, object] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _first_of(row: dict[str, object], names: tuple[str, ...], given: str | None) -> str:
    return given or next((name for name in names if name in row), names[0])
