"""Splits a document into sentences, by its punctuation and by its layout.

`sentencex` knows abbreviations and decimal points, but takes a list or a heading for a part of the sentence around
it. So the layout is read first, and each list item, heading and paragraph is split on its own.
"""

from itertools import groupby

import sentencex

from lucid.preparation.wrapping import unwrap

# A short segment like "1." or "(*)", but not "12", is the number of a list item, which belongs to the next sentence.
_LONGEST_NUMBER = 8


def split_sentences(text: str, language: str = "en") -> list[str]:
    """Return the sentences of `text` in order, none of them empty, each on one line with single spaces.

    `language`, a code of `LANGUAGES`, determines the abbreviations.
    """
    # Text of a JSON line may end its lines in any way.
    blocks = (rows for blank, rows in groupby(text.splitlines(), lambda row: not row.strip()) if not blank)
    paragraphs = "\n\n".join(part for rows in blocks for part in unwrap(rows))
    sentences: list[str] = []
    number = ""
    for segment in sentencex.segment(language, paragraphs):
        sentence = " ".join([number, *segment.split()]).strip()
        if sentence and not _is_number(sentence):
            sentences.append(sentence)
            sentence = ""
        number = sentence
    return [*sentences, number] if number else sentences


def _is_number(sentence: str) -> bool:
    return len(sentence) <= _LONGEST_NUMBER and not sentence[-1].isdigit() and not any(map(str.isalpha, sentence))
