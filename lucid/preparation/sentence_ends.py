"""Ends of sentences in the scripts where `sentencex` sees too few or too many of them.

It knows the marks of Chinese, Japanese, Indian scripts, Arabic, Urdu, Armenian, Ethiopic and Burmese. What it lacks is
added here, by the script of the text, whatever its language: a text may have several.
"""

import re
from collections.abc import Iterable, Iterator

from lucid.data.unspaced import SYLLABIC

# What changes nothing in a text without any of these.
_CONCERNED = re.compile(f"[\u0370-\u03ff\u1f00-\u1fff{SYLLABIC}\u3001-\u3011\uff01-\uff65]")
# No sentence ends at the Burmese comma, nor before the particles that follow a quotation in Japanese.
_COMMA, _QUOTATION, _QUOTING = "\u104a", tuple("」』"), ("と", "って")
# Marks that close or end something cannot begin a sentence. After some of them the sentence continues.
_CLOSING = re.compile("[」』”’）》】〕〉｝］。！？…、，；：]+")
_CONTINUING = tuple("、，；：")
# The marks of Khmer, and the Greek question mark, which looks like a semicolon. A Greek sentence begins with a capital.
_MARK = re.compile("[\u17d4\u17d5\u17da;\u037e][\"'»”’)]*\\s*")
_GREEK, _GREEK_START = re.compile("[\u0370-\u03ff\u1f00-\u1fff]"), re.compile("[\"'«“(]*[\u0386-\u038f\u0391-\u03ab]")
# `\u17d4\u179b\u17d4` is "and so on".
_SO_ON = "\u17d4\u179b\u17d4"
# Thai and Lao have spaces between clauses and sentences, but also around names and quantities; Tibetan has one mark for
# clauses and sentences. Here a part ends, if it is about as long as a sentence, and another one may follow.
_PAUSE = re.compile("[\u0f0d-\u0f11\u0f14\\s]+")
_LETTER, _WORD_START = (
    re.compile("[\u0e01-\u0e4e\u0e81-\u0ecd]"),
    re.compile("[\u0e01-\u0e2e\u0e40-\u0e44\u0e81-\u0eae\u0ec0-\u0ec4]"),
)
_LONG_ENOUGH, _LEFT = 60, 30


def mended(text: str, segments: list[str]) -> Iterable[str]:
    """Return the sentences of `text`, given those that `sentencex` has found. Both are all of the text, in order."""
    return segments if text.isascii() or not _CONCERNED.search(text) else _mended(segments)


def _mended(segments: list[str]) -> Iterator[str]:
    sentence = ""
    for segment in segments:
        if closing := _CLOSING.match(segment) if sentence and not sentence[-1].isspace() else None:
            goes_on = closing[0].endswith(_CONTINUING)
            sentence, segment = sentence + closing[0], segment[closing.end() :]
        else:
            is_quoted = sentence.endswith(_QUOTATION) and segment.startswith(_QUOTING)
            goes_on = is_quoted or sentence.rstrip().endswith(_COMMA)
        if not goes_on:
            yield from _parts(sentence)
            sentence = ""
        sentence += segment
    yield from _parts(sentence)


def _parts(sentence: str) -> Iterator[str]:
    """Yield the parts of a segment that are sentences, or as long as these."""
    start = 0
    for mark in _MARK.finditer(sentence):
        if _ends_sentence(mark):
            yield from _clauses(sentence[start : mark.end()])
            start = mark.end()
    yield from _clauses(sentence[start:])


def _ends_sentence(mark: re.Match[str]) -> bool:
    text, start, end = mark.string, mark.start(), mark.end()
    if mark[0][0] in ";\u037e":
        return bool(mark[0][-1].isspace() and _GREEK.match(text, max(start - 1, 0)) and _GREEK_START.match(text, end))
    return _SO_ON not in (text[max(start - 2, 0) : start + 1], text[start : start + 3])


def _clauses(sentence: str) -> Iterator[str]:
    start = 0
    if len(sentence) > _LONG_ENOUGH:
        for pause in _PAUSE.finditer(sentence, _LONG_ENOUGH - 1):
            end = pause.end()
            if end - start > _LONG_ENOUGH and len(sentence) - end >= _LEFT and _may_end(pause):
                yield sentence[start:end]
                start = end
    yield sentence[start:]


def _may_end(pause: re.Match[str]) -> bool:
    text = pause.string
    return not pause[0].isspace() or bool(
        _LETTER.match(text, pause.start() - 1) and _WORD_START.match(text, pause.end())
    )
