"""Splits a document into sentences: at the marks of punctuation, and where its lines say so.

`sentencex` knows abbreviations and decimal points, but takes a list or a heading for a part of the sentence around
it. So the layout is read first, and every part that stands by itself becomes a paragraph of its own.
"""

import re
from collections.abc import Iterator

import sentencex

_PARAGRAPH = re.compile(r"\n[ \t\f\v]*(?:\n[ \t\f\v]*)+")
_BULLET = re.compile(r"(?:[-*+•]|\d{1,3}[.)])\s")
# Text is wrapped at widths below this; in wider text each line is a paragraph.
_WIDEST_WRAP = 120


def split_sentences(text: str, language: str = "en") -> list[str]:
    """Return the sentences of `text` in order, none of them empty, each on one line with single spaces.

    `language`, a code like `de`, decides what is an abbreviation; one that is not known counts as English.
    """
    paragraphs = "\n\n".join(part for paragraph in _PARAGRAPH.split(text) for part in _unwrap(paragraph))
    sentences: list[str] = []
    number = ""
    for segment in sentencex.segment(language, paragraphs):
        sentence = " ".join([number, *segment.split()]).strip()
        # A segment without a letter is no sentence: the number of an item is cut off, and belongs to what follows.
        number = "" if any(map(str.isalpha, sentence)) else sentence
        if sentence and not number:
            sentences.append(sentence)
    return [*sentences, number] if number else sentences


def _unwrap(paragraph: str) -> Iterator[str]:
    """Yield the parts of a paragraph whose lines belong together, each joined into one line."""
    lines = [line.rstrip() for line in paragraph.splitlines()]
    width = max(map(len, lines), default=0)
    joined: list[str] = []
    for before, line in zip(["", *lines], lines, strict=False):
        if joined and _starts_anew(before, line, width):
            yield " ".join(joined)
            joined = []
        joined.append(line.strip())
    yield " ".join(joined)


def _starts_anew(before: str, line: str, width: int) -> bool:
    """Whether the break between two lines was meant: the next word would have fitted, and does not go on below."""
    words = line.split(maxsplit=1)
    if not words or width > _WIDEST_WRAP or _BULLET.match(line.lstrip()):
        return True
    return not words[0][0].islower() and len(before) + 1 + len(words[0]) <= width
