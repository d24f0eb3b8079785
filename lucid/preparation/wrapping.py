"""Joins the lines of text that was wrapped, and keeps the lines of lists, captions, poems, logs and source code.

A program that wraps text begins a new line where the next word does not fit. So the lines of wrapped text are full: the
first word of the next line would have passed the width. Lines that mean something end anywhere.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import NamedTuple

from lucid.data.unspaced import SYLLABIC, UNSPACED

_BULLET = re.compile(r"(?:[-*+•]|\d{1,3}[.)])\s")
# Columns: text is not wrapped to less, and in wider text each line is a paragraph.
_NARROWEST, _WIDEST = 30, 120
# Characters of two columns. A line may break before any ideograph, but not before the marks that follow it.
_WIDE = re.compile(
    "[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\uff01-\uff60\U00020000-\U0003fffd]+"
)
_IDEOGRAPH = re.compile(
    "[\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003fffd][\u3001-\u3002\u300d-\u300f\uff01-\uff1f]*"
)
# Columns: longer words, such as addresses, say little about the width.
_LONGEST_WORD = 20
_OPENING = "\"'([{«‹„“”‘’¿¡"
_CLOSING = "\"')]}»›”’」』）】》"
_STOPS = tuple(".!?:;…。！？：；｡．।॥۔؟։።။។")
# Text that is written without spaces, and the marks of full width, which are spaced by themselves.
_UNSPACED, _SPACED_ITSELF = re.compile(f"[{UNSPACED}]"), re.compile("[\u3000-\u303f\uff01-\uff65]")
_SYLLABLE = re.compile(f"[{SYLLABIC}]")
_AFTER_STOP = re.compile(r"[.!?]\W{1,4}(\w)")
# How often the lines of a list may be full by accident.
_ACCIDENT = 0.01


class _Line(NamedTuple):
    """A line of a paragraph: its columns, with indentation, and the columns that its first word needs.

    `goes_on`: it begins with a letter that is no capital. `is_lower`: with a small one, while letters of many scripts
    are neither. `is_item`: it begins with a bullet or a number.
    """

    text: str
    columns: int
    word: int
    is_capital: bool
    goes_on: bool
    is_lower: bool
    is_item: bool


def unwrap(rows: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a paragraph. Those that belong together are joined.

    They are joined by a space, but for text that is written without spaces. `rows` are not blank, and no space ends
    one.
    """
    if len(rows) == 1 or not _NARROWEST <= (width := _width(rows)) <= _WIDEST:
        yield from map(str.lstrip, rows)
        return
    lines = [_line(row) for row in rows]
    cased = _is_cased(lines)
    wrapped = _is_wrapped(lines, width, cased)
    joined = [lines[0].text]
    for before, line in pairwise(lines):
        belongs = _is_full(before, line, width) if line.is_capital else _is_nearly_full(before, line, width)
        if not wrapped or line.is_item or not (belongs or (cased and line.is_lower)):
            yield "".join(joined)
            joined = []
        else:
            joined.append(_joint(before, line, width))
        joined.append(line.text)
    yield "".join(joined)


def _joint(before: _Line, line: _Line, width: int) -> str:
    """Return what stood between two lines before they were wrapped: a space, or nothing in text without spaces."""
    last, first = before.text[-1], line.text[0]
    if last.isascii() and first.isascii():
        return " "
    if _SPACED_ITSELF.match(last) or _SPACED_ITSELF.match(first):
        return ""
    if not (_UNSPACED.match(last) and _UNSPACED.match(first)):
        return " "
    # Thai has spaces between clauses, and lines may end at these. Such lines need not be full.
    ends_early = before.columns <= width * 7 // 8
    return " " if ends_early and _SYLLABLE.match(last) and _SYLLABLE.match(first) else ""


def _width(rows: Sequence[str]) -> int:
    """Return the columns of the widest line. One in eleven may be wider, as one with an address is."""
    columns = sorted(map(_columns, rows))
    return columns[-1 - len(columns) // 11] if columns else 0


def _columns(text: str) -> int:
    return len(text) if text.isascii() else len(text) + sum(map(len, _WIDE.findall(text)))


def _line(row: str) -> _Line:
    text = row.lstrip()
    word = text.split(maxsplit=1)[0]
    needed = 1 + min(_columns(word), _LONGEST_WORD)
    if not text[0].isascii() and (ideograph := _IDEOGRAPH.match(text)):
        needed = _columns(ideograph[0])
    first, item = text[0], None
    if not first.isalpha():
        item = _BULLET.match(text)
        first = (text[item.end() if item else 0 :].lstrip(_OPENING) or text)[0]
    is_capital = first.isupper() or first.istitle()
    goes_on = not is_capital and first.isalpha()
    return _Line(text, _columns(row), needed, is_capital, goes_on, goes_on and first.islower(), item is not None)


def _is_full(before: _Line, line: _Line, width: int) -> bool:
    """Return whether the first word of `line` would not have fitted into the line before."""
    return before.columns + line.word > width


def _is_nearly_full(before: _Line, line: _Line, width: int) -> bool:
    """Return the same of a line that somebody wrapped by hand, or altered later."""
    return _is_full(before, line, width * 7 // 8)


def _is_cased(lines: Sequence[_Line]) -> bool:
    """Return whether capitals begin sentences, and small letters do not. Many scripts have neither."""
    if 2 * sum(line.is_lower for line in lines) < sum(line.goes_on for line in lines):
        return False
    return any(line.is_capital for line in lines) or _has_capital_after_stop(lines)


def _has_capital_after_stop(lines: Sequence[_Line]) -> bool:
    return any(match[1].isupper() for line in lines for match in _AFTER_STOP.finditer(line.text))


def _is_wrapped(lines: Sequence[_Line], width: int, cased: bool) -> bool:
    """Return whether lines continue the line before because that was full."""
    pairs = [(before, line) for before, line in pairwise(lines) if not line.is_item]
    stops = [line.text.rstrip(_CLOSING).endswith(_STOPS) for line in lines]
    may_belong = all(_is_nearly_full(before, line, width) or (cased and line.is_lower) for before, line in pairs)
    if stops[-1] and 4 * sum(stops) <= len(stops) + 3 and may_belong:
        return True  # sentences seldom end where lines do
    breaks = [(before, line) for before, line in pairs if line.goes_on]
    if cased:
        return 0 < 2 * len(breaks) <= 3 * sum(_is_nearly_full(before, line, width) for before, line in breaks)
    # Without capitals a list looks the same, and a few of its lines may be full by accident: seldom so of ideographs.
    full = [before.columns for before, line in breaks if _is_full(before, line, width)]
    if len(full) < (2 if _IDEOGRAPH.match(lines[0].text) else 4) or 10 * len(full) < 9 * len(breaks):
        return False
    # Full lines differ by less than a word, while a paragraph may end anywhere.
    if lines[-1].columns < 2 * min(full) - max(full):
        return True
    # Would other lines of the text have been full, too, in the place of those that follow?
    words = sorted(line.word for _, line in breaks)
    return prod(1 - bisect_right(words, width - columns) / len(words) for columns in full) < _ACCIDENT
