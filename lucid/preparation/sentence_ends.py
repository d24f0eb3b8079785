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
_GOES_ON = re.compile("\u104a\\s*\\Z"), re.compile("[」』]\\Z")
_QUOTING = re.compile("と|って")
# Marks that close or end something cannot begin a sentence. After some of them the sentence continues.
_CLOSING = re.compile("[」』”’）》】〕〉｝］。！？…、，；：]+")
CONTINUING = tuple("、，；：")
# Khmer, but not `។ល។`, "and so on"; and the Greek question mark, which looks like a semicolon.
_ENDS = re.compile(
    "(?<=[\u17d4-\u17d5\u17da])(?<!\u17d4\u179b\u17d4)(?!\u179b\u17d4)[\"'»”’)]*\\s*"
    "|(?<=[\u0370-\u03ff\u1f00-\u1fff])[;\u037e][\"'»”’)]*\\s+(?=[\"'«“(]*[\u0386-\u038f\u0391-\u03ab])"
)
# Thai and Lao have spaces between clauses and sentences, but also around names and quantities; Tibetan has one mark for
# clauses and sentences. Here a part ends, if it is about as long as a sentence, and another one may follow.
_MAY_END = re.compile(
    "(?<=[\u0e01-\u0e4e])\\s+(?=[\u0e01-\u0e2e\u0e40-\u0e44])"
    "|(?<=[\u0e81-\u0ecd])\\s+(?=[\u0e81-\u0eae\u0ec0-\u0ec4])"
    "|[\u0f0d-\u0f11\u0f14][\u0f0d-\u0f11\u0f14\\s]*"
)
_LONG_ENOUGH, _LEFT = 60, 30


def mended(text: str, segments: list[str]) -> Iterable[str]:
    """Return the sentences of `text`, given those that `sentencex` has found. Both are all of the text, in order."""
    return _mended(segments) if _CONCERNED.search(text) else segments


def _mended(segments: list[str]) -> Iterator[str]:
    sentence = ""
    for segment in segments:
        if closing := _CLOSING.match(segment) if sentence and not sentence[-1].isspace() else None:
            goes_on = closing[0].endswith(CONTINUING)
            sentence, segment = sentence + closing[0], segment[closing.end() :]
        else:
            comma, quotation = (end.search(sentence) for end in _GOES_ON)
            goes_on = bool(comma or (quotation and _QUOTING.match(segment)))
        if not goes_on:
            yield from _parts(sentence)
            sentence = ""
        sentence += segment
    yield from _parts(sentence)


def _parts(sentence: str) -> Iterator[str]:
    """Yield the parts of a segment that are sentences, or as long as these."""
    start = 0
    for end in _ENDS.finditer(sentence):
        yield from _clauses(sentence[start : end.end()])
        start = end.end()
    yield from _clauses(sentence[start:])


def _clauses(sentence: str) -> Iterator[str]:
    start = 0
    for end in _MAY_END.finditer(sentence):
        if end.end() - start > _LONG_ENOUGH and len(sentence) - end.end() >= _LEFT:
            yield sentence[start : end.end()]
            start = end.end()
    yield sentence[start:]
