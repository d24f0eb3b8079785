"""Why input is left out, and what a user can do about it."""

from collections.abc import Callable

from lucid.errors import DataError
from lucid.preparation.kinds import ARROW, CSV, HTML, MARKDOWN, PARQUET, TSV
from lucid.preparation.sources import Source

# Bytes of one line, of one cell, or of a page of HTML: a small compressed file may hold any number of them.
LONGEST_LINE = 1 << 24

TOO_LONG = f"longer than {LONGEST_LINE >> 20} MiB"
NOT_UTF8, NUL, NOT_JSON, SURROGATE = "not UTF-8", "NUL bytes", "not JSON", "half a surrogate pair"
NO_TEXT, EMPTY, UNREADABLE, DAMAGED_ROW = "no text", "empty document", "unreadable file", "damaged row"
OTHER_KIND = "another kind of file"
_ADVICE = {
    TOO_LONG: "break it into more lines (in .txt, as with fold -s)",
    NOT_UTF8: "convert the file, as with iconv",
    NUL: "this may not be text: mend or remove it",
    NOT_JSON: "mend or remove the line",
    SURROGATE: "mend or remove the line",
    NO_TEXT: "each record needs a field (--text-field) that is a string",
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

# Called for everything that is left out, with the source, the line, the reason, and a detail or "".
Drop = Callable[[Source, int, str, str], None]


def refuse(source: Source, line: int, reason: str, detail: str) -> None:
    """The `Drop` that leaves nothing out: raise `DataError`, which says where the fault is and what to do."""
    more = f" ({detail})" if detail else ""
    advice = _ADVICE | _ADVICE_BY_KIND.get(source.kind, {})
    raise DataError(f"{source.shown}:{line}: {reason}{more}: {advice[reason]}")
