"""Splits a document into sentences, by its punctuation and by its layout.

`sentencex` knows abbreviations and decimal points, but takes a list or a heading for a part of the sentence around
it. So the layout is read first, and each list item, heading and paragraph is split on its own.
"""

import re
from collections.abc import Iterator

import sentencex

_PARAGRAPH = re.compile(r"\n[ \t\f\v]*(?:\n[ \t\f\v]*)+")
_BULLET = re.compile(r"(?:[-*+•]|\d{1,3}[.)])\s")
# Characters: wrapped text has shorter lines than this. In wider text each line is a paragraph.
_WIDEST_WRAP = 120


def split_sentences(text: str, language: str = "en") -> list[str]:
    """Return the sentences of `text` in order, none of them empty, each on one line with single spaces.

    `language`, a code like `de`, determines the abbreviations. An unknown code counts as English.
    """
    paragraphs = "\n\n".join(part for paragraph in _PARAGRAPH.split(text) for part in _unwrap(paragraph))
    sentences: list[str] = []
    number = ""
    for segment in sentencex.segment(language, paragraphs):
        sentence = " ".join([number, *segment.split()]).strip()
        # A segment without a letter is the number of a list item, which belongs to the next sentence.
        number = "" if any(map(str.isalpha, sentence)) else sentence
        if sentence and not number:
            sentences.append(sentence)
    return [*sentences, number] if number else sentences


def _unwrap(paragraph: str) -> Iterator[str]:
    """Join the lines of a paragraph that belong together, and yield the joined lines."""
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
    """Return whether the line break was meant: the next word is not in lower case, and would have fitted above."""
    words = line.split(maxsplit=1)
    if not words or width > _WIDEST_WRAP or _BULLET.match(line.lstrip()):
        return True
    return not words[0][0].islower() and len(before) + 1 + len(words[0]) <= width
