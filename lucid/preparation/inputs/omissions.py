"""Why input is left out, and what a user can do about it."""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lucid.errors import DataError
from lucid.preparation.inputs.kinds import ARROW, CSV, HTML, MARKDOWN, PARQUET, TSV
from lucid.preparation.inputs.sources import Source

# Bytes of one line, of one cell, or of a page of HTML or Markdown: a small compressed file may hold any number of them.
LONGEST_LINE = 1 << 24

TOO_LONG = f"longer than {LONGEST_LINE >> 20} MiB"
NOT_UTF8, NUL, NOT_JSON, SURROGATE = "not UTF-8", "NUL bytes", "not JSON", "half a surrogate pair"
NO_TEXT, EMPTY, UNREADABLE, DAMAGED_ROW = "no text", "empty document", "unreadable file", "damaged row"
NO_COLUMN = "no such column"
NO_IDS, UNKNOWN_ID, SPECIAL_ID = "no token ids", "id outside the vocabulary", "id of a special token"
OTHER_KIND = "another kind of file"
_ADVICE = {
    TOO_LONG: "break it into more lines (in .txt, as with fold -s)",
    NOT_UTF8: "convert the file, as with iconv",
    NUL: "this may not be text: mend or remove it",
    NOT_JSON: "mend or remove the line",
    SURROGATE: "mend or remove the line",
    NO_TEXT: "each record needs a field (--text-field) that is a string",
    NO_IDS: "each record needs whole numbers in the field (--ids-field), as a list or a list of such lists",
    UNKNOWN_ID: "take the vocabulary that the ids are of (--tokenizer)",
    SPECIAL_ID: "tokenize without special tokens (add_special_tokens=False)",
    NO_COLUMN: "name one that the file has",
    DAMAGED_ROW: "mend or remove it",
    EMPTY: "remove it",
    UNREADABLE: "mend it, or get it again",
}
# Where a table has no lines, and is no file of text.
_ADVICE_ON_CELLS = {
    TOO_LONG: "divide the text of the cell among several rows",
    NOT_UTF8: "write the column again as text in UTF-8",
    NO_TEXT: "each row needs text in the column (--text-field)",
}
_ADVICE_ON_ROWS = {TOO_LONG: "divide it, or close the quotes of its cells", EMPTY: "fill the cell, or remove the row"}
_ADVICE_ON_PAGES = {TOO_LONG: "divide it into several files"}
_ADVICE_BY_KIND = {
    PARQUET: _ADVICE_ON_CELLS,
    ARROW: _ADVICE_ON_CELLS,
    CSV: _ADVICE_ON_ROWS,
    TSV: _ADVICE_ON_ROWS,
    HTML: _ADVICE_ON_PAGES,
    MARKDOWN: _ADVICE_ON_PAGES,
}

# Names of columns that a message shows.
_NAMES_SHOWN = 20
# How many of the places where a portion leaves something out are listed. The rest are only counted.
_PLACES = 1000

# Called for everything that is left out, with the source, the line, the reason, and a detail or "".
Drop = Callable[[Source, int, str, str], None]


class UnusableFileError(EOFError):
    """A file that is left out for a `reason` other than damage."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def no_column(source: Source, names: Sequence[str]) -> UnusableFileError:
    """Return the error for a table without the column of its text or its ids, which has the columns `names`."""
    found = ", ".join(map(repr, names[:_NAMES_SHOWN])) + ", ..." * (len(names) > _NAMES_SHOWN)
    wanted = f"{source.field!r} of {'--ids-field' if source.holds_ids else '--text-field'}"
    return UnusableFileError(NO_COLUMN, f"{wanted}; the table has {found or 'none'}")


def check_utf8(head: bytes) -> None:
    """Raise `UnusableFileError` if `head`, the first line of a file, is not text in UTF-8."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UnusableFileError(NOT_UTF8, "it is UTF-16")
    if b"\0" in head:
        raise UnusableFileError(NUL, "")
    try:
        head.decode()
    except UnicodeDecodeError as error:
        raise UnusableFileError(NOT_UTF8, error.reason) from error


def refuse(source: Source, line: int, reason: str, detail: str) -> None:
    """The `Drop` that leaves nothing out: raise `DataError`, which says where the fault is and what to do."""
    more = f" ({detail})" if detail else ""
    advice = _ADVICE | _ADVICE_BY_KIND.get(source.kind, {})
    raise DataError(f"{source.shown}:{line}: {reason}{more}: {advice[reason]}")


@dataclass
class Dropped:
    """What was left out: the count for each reason, and a line for each of the first places."""

    counts: dict[str, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    @property
    def first(self) -> str:
        """The first place and its reason; "" if nothing was left out."""
        return ": ".join(self.lines[0].split("\t")) if self.lines else ""

    def note(self, source: Source, line: int, reason: str, detail: str, is_listed: bool = True) -> None:
        """Record one omission: the `Drop` of readers. Line 0 stands for the whole file.

        If it `is_listed` and one of the first, it gets a line: the place, the reason and perhaps the detail, with tabs
        between them and nowhere else.
        """
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if is_listed and len(self.lines) < _PLACES:
            # Names of files and messages of libraries may hold tabs and ends of lines.
            fields = [source.name + f":{line}" * (line > 0), reason, detail]
            self.lines.append("\t".join(" ".join(field.split()) for field in fields if field))
