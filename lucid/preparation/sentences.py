"""Splits a document into sentences, by its punctuation and by its layout.

`sentencex` knows abbreviations and decimal points, but takes a list or a heading for a part of the sentence around
it. So the layout is read first, and each list item, heading and paragraph is split on its own.
"""

import re
from collections.abc import Iterable, Iterator

import sentencex

from lucid.preparation.sentence_ends import mended
from lucid.preparation.wrapping import unwrap

# A short segment like "1." or "(*)", but not "12", is the number of a list item, which belongs to the next sentence.
_LONGEST_NUMBER = 8
# Characters that are split at once, so that memory does not grow with the document.
_AT_ONCE = 1 << 18
# A longer text is cut after the first of these in its middle: between paragraphs, lines, sentences, or words.
_CUTS = tuple(
    re.compile(cut)
    for cut in (
        r"\n\s*\n|\r\s*\r",
        "[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]",
        r"[.!?…؟۔।॥։][\"')\]»”’]*\s|[。！？။។]",
        r"\s",
    )
)
_LAST_SPACE, _END_OF_WORD = re.compile(r"\s(?=\S*\Z)"), re.compile(r"\s|[。！？။།]")


def split_sentences(text: str, language: str = "en") -> Iterator[str]:
    """Yield the sentences of `text` in order, none of them empty, each on one line with single spaces.

    `language`, a code of `LANGUAGES`, determines the abbreviations. A sentence that is longer than 131,072 characters
    may come in several parts, between words.
    """
    number = ""
    for block in _blocks(text):
        for segment in _segments(block, language):
            sentence = " ".join(segment.split())
            if number:
                sentence = f"{number} {sentence}".strip()
            if len(sentence) > _LONGEST_NUMBER or not _is_number(sentence):
                yield sentence
                sentence = ""
            number = sentence
    if number:
        yield number


def _blocks(text: str) -> Iterator[str]:
    """Cut a text into blocks of at most `_AT_ONCE` characters. A word that is longer is a block of its own."""
    start = 0
    while len(text) - start > _AT_ONCE:
        middle = start + _AT_ONCE // 2
        found = [cut.search(text, middle, start + _AT_ONCE) for cut in _CUTS]
        cut = next(filter(None, found), None) or _LAST_SPACE.search(text, start, middle)
        cut = cut or _END_OF_WORD.search(text, middle)
        stop = cut.end() if cut else len(text)
        yield text[start:stop]
        start = stop
    yield text[start:]


def _segments(block: str, language: str) -> Iterable[str]:
    """Return the segments of a block. Some of them hold only white space."""
    if len(block) > _AT_ONCE:
        return [block]
    paragraphs = "\n\n".join(line for rows in _paragraphs(block) for line in unwrap(rows))
    return mended(paragraphs, sentencex.segment(language, paragraphs))


def _paragraphs(block: str) -> Iterator[list[str]]:
    """Yield the lines between blank ones, without the spaces at their ends."""
    rows: list[str] = []
    # Text of a JSON line may end its lines in any way.
    for row in map(str.rstrip, block.splitlines()):
        if row:
            rows.append(row)
        elif rows:
            yield rows
            rows = []
    if rows:
        yield rows


def _is_number(sentence: str) -> bool:
    """Return whether a short sentence is the number of a list item, or nothing."""
    return not sentence[-1:].isdigit() and not any(map(str.isalpha, sentence))
