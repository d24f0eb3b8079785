"""Trains the WordPiece tokenizer, on a sample of the text.

How it normalises, how many characters it knows and how long its words may be is chosen by the text, unless it is given.

Training is deterministic. The `tokenizers` library alone is not: it numbers the pieces `##x` of one character in the
order of a hash map, and those numbers decide between equally frequent merges. Here they are fixed beforehand.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from lucid.data.tokenizer import CONTINUING, LARGEST_VOCABULARY, SPECIAL_TEXTS, bert_tokenizer
from lucid.errors import DataError
from lucid.preparation.scripts import Normalisation, Scripts, script_of
from lucid.preparation.text_sample import SAMPLE_BYTES, blocks

SMALLEST_VOCABULARY = 64
# Characters of the vocabulary, if it has four times the room: enough for an alphabet and its rare visitors. Where more
# are needed to write this much of each script, as in Chinese or Korean, there are more, in this part of the vocabulary.
# (SentencePiece, too, covers 99.95% of such text by default.)
_ALPHABET, _COVERAGE, _LARGEST_PART = 1000, 0.9995, 0.75
# How the manifest calls what is chosen.
_KEPT = {None: None, True: "kept", False: "removed"}


@dataclass(frozen=True)
class VocabularySettings:
    """How a tokenizer is trained; see `prepare`. What is None is chosen by the text."""

    vocab_size: int
    cased: bool | None = None
    keep_accents: bool | None = None
    alphabet: int | None = None
    sample_bytes: int = SAMPLE_BYTES

    def described(self) -> dict[str, Any]:
        """Return the settings for the manifest: None is a choice by the text, and the usual size of a sample."""
        return {
            "vocab_size": self.vocab_size,
            "case": _KEPT[self.cased],
            "accents": _KEPT[self.keep_accents],
            "alphabet": self.alphabet,
            "tokenizer_sample": None if self.sample_bytes == SAMPLE_BYTES else self.sample_bytes,
        }

    def check(self, is_used: bool) -> None:
        """Raise `DataError` if a setting makes no sense, or if there is one for training although it `is_used` not."""
        options = {
            "--uncased" if self.cased is False else "--cased": self.cased is not None,
            "--strip-accents" if self.keep_accents is False else "--keep-accents": self.keep_accents is not None,
            "--alphabet": self.alphabet is not None,
            "--tokenizer-sample": self.sample_bytes != SAMPLE_BYTES,
        }
        given = [option for option, is_given in options.items() if is_given]
        if given and not is_used:
            raise DataError(f"--tokenizer takes a tokenizer as it is: leave out {', '.join(given)}")
        size = self.vocab_size
        if is_used and not SMALLEST_VOCABULARY <= size <= LARGEST_VOCABULARY:
            raise DataError(
                f"a vocabulary of {size} tokens is too {'small' if size < SMALLEST_VOCABULARY else 'large'}: "
                f"take from {SMALLEST_VOCABULARY} to {LARGEST_VOCABULARY:,}"
            )
        if self.alphabet is not None and self.alphabet < 1:
            raise DataError(f"an alphabet of {self.alphabet} characters is too small: take 1 or more")
        if self.sample_bytes < 1:
            raise DataError(f"a sample of {self.sample_bytes} bytes is too small: take 1 or more")


class Trained(NamedTuple):
    """A trained tokenizer, and what the choices for it rest on."""

    tokenizer: Tokenizer
    scripts: Scripts
    normalisation: Normalisation


def train_tokenizer(texts: Callable[[], Iterable[str]], settings: VocabularySettings) -> Trained:
    """Train a WordPiece tokenizer, the special tokens with ids 0 to 4.

    `texts` is called twice and yields the same texts both times. The result depends on nothing else.
    """
    characters: Counter[str] = Counter()
    for text in texts():
        characters.update(text)
    scripts = Scripts.of(characters)
    normalisation = Normalisation.chosen(scripts, settings.cased, settings.keep_accents)
    special = list(SPECIAL_TEXTS.values())
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL_TEXTS["unknown"]))
    tokenizer.normalizer = normalizers.BertNormalizer(**normalisation.arguments)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    room = settings.vocab_size - len(special)
    alphabet = _alphabet(tokenizer, characters, scripts.main, room, settings.alphabet)
    continuing = [f"##{character}" for character, continues in alphabet.items() if continues]
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=special + continuing,
        initial_alphabet=list(alphabet),
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    texts_of_it = blocks(texts(), normalisation.cased, settings.sample_bytes)
    tokenizer.train_from_iterator(texts_of_it, trainer=trainer)
    # The trained tokenizer treats the continuing pieces as special: make another one with its vocabulary.
    vocabulary, longest_word = tokenizer.get_vocab(), normalisation.longest_word
    return Trained(bert_tokenizer(vocabulary, longest_word, **normalisation.arguments), scripts, normalisation)


def _alphabet(
    tokenizer: Tokenizer, characters: Mapping[str, int], scripts: Sequence[str], room: int, most: int | None
) -> dict[str, bool]:
    """Return the characters for a vocabulary with `room` for other than special tokens, sorted.

    Each has whether it can continue a word, and so needs a second piece. The most frequent ones are taken, once they
    are normalised: `most` of them, or as many as the text needs and each of these `scripts` in it. They fill three
    quarters of the room at the most.
    """
    counts: Counter[str] = Counter()
    for character, count in characters.items():
        for part in tokenizer.normalizer.normalize_str(character):
            if not part.isspace():
                counts[part] += count
    # How much of the whole text (the script "") and of each script is still to be covered.
    left = dict.fromkeys(["", *scripts], 0.0)
    for part, count in counts.items():
        for covered in {"", script_of(part)} & left.keys():
            left[covered] += _COVERAGE * count
    few = min(_ALPHABET, room // 4) if most is None else most
    taken: dict[str, bool] = {}
    pieces = 0
    for part, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        covers = {"", script_of(part)} & left.keys()
        if len(taken) >= few and (most is not None or all(left[covered] <= 0 for covered in covers)):
            continue
        continues = _continues_a_word(tokenizer, part)
        pieces += 1 + continues
        if pieces > _LARGEST_PART * room:
            break
        taken[part] = continues
        for covered in covers:
            left[covered] -= count
    return dict(sorted(taken.items()))


def limit_of_characters(tokenizer: Tokenizer, vocab_size: int, most: int | None) -> str:
    """Return the option that kept more characters out of a trained vocabulary, with its value; "" if none did."""
    tokens = tokenizer.get_vocab()
    characters = sum(len(token) == 1 for token in tokens)
    continuing = sum(len(token) == len(CONTINUING) + 1 and token.startswith(CONTINUING) for token in tokens)
    if most is not None and characters >= most:
        return f"--alphabet (now {most:,})"
    # A character takes one place or two.
    is_full = characters + continuing + 2 > _LARGEST_PART * (vocab_size - len(SPECIAL_TEXTS))
    return f"--vocab-size (now {vocab_size:,})" if is_full else ""


def _continues_a_word(tokenizer: Tokenizer, character: str) -> bool:
    """Return whether a character can be inside a word: punctuation and ideographs are words of their own."""
    normalised = tokenizer.normalizer.normalize_str(f"a{character}")
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(normalised)) == 1
