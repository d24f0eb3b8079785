"""Finds the scripts in which a text is written, and chooses by them how a tokenizer normalises and splits it.

Lower case and stripped accents save vocabulary in English. In other languages they lose what tells words apart, which
is why BERT's authors recommend the cased model for these: https://github.com/google-research/bert/blob/master/multilingual.md
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from lucid.data.tokenizer import BERTS_LONGEST_WORD
from lucid.data.unspaced import SYLLABIC, TIBETAN

# Text like English: so much of its letters is Latin, and so little of them is none of a to z.
_LATIN, _MARKED = 0.95, 0.002
# Marks of symbols, not of letters: those around keycaps, those of notes, and the selectors of how an emoji is drawn.
_OF_SYMBOLS = re.compile("[\u20d0-\u20ff\ufe00-\ufe0f\U0001d165-\U0001d1ad\U000e0100-\U000e01ef]")
# Letters between which a tokenizer splits nowhere, so that a clause is one word. (It splits at the dots of Tibetan, and
# at Chinese characters, which Japanese has too.)
_IN_CLAUSES = re.compile(f"(?![{TIBETAN}])[{SYLLABIC}]")
# The share of such letters from which words of a tokenizer may be longer than BERT's; of a script that matters.
_SOME = 0.01
# Characters of a word that is still looked up in the vocabulary.
_LONGEST_CLAUSE = 500
# How Unicode calls scripts in the names of characters, where it differs from the name of the script.
# Letters and marks whose names begin like the last two belong to no script.
_OTHER_NAMES = {"Cjk": "Han", "Canadian": "Canadian Aboriginal", "Modifier": "", "Combining": ""}


@dataclass(frozen=True)
class Scripts:
    """The share of the letters in each script, the largest first; of those that carry marks; of those in long clauses.

    Marks are accents, vowel signs, and whatever else makes a Latin letter another one than a to z.
    """

    shares: Mapping[str, float]
    marked: float
    in_clauses: float

    @classmethod
    def of(cls, characters: Mapping[str, int]) -> "Scripts":
        """Return those of a text with these numbers of characters."""
        scripts: Counter[str] = Counter()
        letters = marks = in_clauses = 0
        for character, count in characters.items():
            category, script = unicodedata.category(character)[0], script_of(character)
            if category not in "LM" or _OF_SYMBOLS.match(character):
                continue
            letters += count * (category == "L")
            in_clauses += count * bool(_IN_CLAUSES.match(character))
            marks += count * (category == "M" or _is_marked(character, script))
            if script:
                scripts[script] += count
        total = scripts.total()
        shares = {script: count / total for script, count in sorted(scripts.items(), key=lambda item: (-item[1], item))}
        return cls(shares, min(1.0, marks / max(letters, 1)), in_clauses / max(total, 1))

    @property
    def main(self) -> list[str]:
        """The scripts of which there is more than a little."""
        return [script for script, share in self.shares.items() if share >= _SOME]

    @property
    def like_english(self) -> bool:
        """Whether the text has almost no other letters than a to z."""
        return not self.shares or (self.shares.get("Latin", 0) >= _LATIN and self.marked < _MARKED)

    def __str__(self) -> str:
        """Return for instance "scripts: Devanagari 96%, Latin 4%; 12% of the letters carry marks"."""
        shown = ", ".join(f"{script} {_percent(self.shares[script])}" for script in self.main)
        return f"scripts: {shown or 'none'}; {_percent(self.marked)} of the letters carry marks"


def script_of(character: str) -> str:
    """Return the name of the script of a character, "" if it is no letter or mark of a script."""
    # The plain form of a full-width or mathematical letter.
    plain = unicodedata.normalize("NFKC", character)[0]
    if unicodedata.category(plain)[0] not in "LM" or _OF_SYMBOLS.match(plain):
        return ""
    word = unicodedata.name(plain, "").split("-")[0].split(" ")[0].title()
    return _OTHER_NAMES.get(word, word)


def _is_marked(letter: str, script: str) -> bool:
    decomposed = unicodedata.normalize("NFKD", letter)
    if script == "Latin":
        return not decomposed.isascii()
    return any(unicodedata.category(part)[0] == "M" for part in decomposed)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 or not share else f"{share:.1%}" if share >= 0.0005 else "under 0.1%"


@dataclass(frozen=True)
class Normalisation:
    """How a tokenizer treats text: whether it keeps case and accents, and the most characters of a word."""

    cased: bool
    keep_accents: bool
    longest_word: int

    @classmethod
    def chosen(cls, scripts: Scripts, cased: bool | None, keep_accents: bool | None) -> "Normalisation":
        """Choose for a text in these scripts what is not given (None)."""
        cased = not scripts.like_english if cased is None else cased
        keep_accents = cased or not scripts.like_english if keep_accents is None else keep_accents
        return cls(cased, keep_accents, _LONGEST_CLAUSE if scripts.in_clauses >= _SOME else BERTS_LONGEST_WORD)

    @property
    def arguments(self) -> dict[str, bool]:
        """The arguments of `BertNormalizer` of `tokenizers`, which by default strips accents if it is uncased."""
        accents = {} if self.cased == self.keep_accents else {"strip_accents": not self.keep_accents}
        return {"lowercase": not self.cased, **accents}

    def __str__(self) -> str:
        """Return for instance "cased, accents kept", with the length of words if that is not BERT's."""
        case, accents = "cased" if self.cased else "uncased", "kept" if self.keep_accents else "stripped"
        is_longer = self.longest_word > BERTS_LONGEST_WORD
        return f"{case}, accents {accents}" + f", words of up to {self.longest_word} characters" * is_longer
