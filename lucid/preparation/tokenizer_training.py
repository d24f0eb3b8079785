"""Trains the WordPiece tokenizer.

Training is deterministic, which the `tokenizers` library alone is not: it numbers the pieces `##x` of one character in
the order of a hash map, and those numbers decide between equally frequent merges. Here they are given beforehand.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from lucid.data.tokenizer import SPECIAL_TEXTS, bert_tokenizer
from lucid.errors import DataError

SMALLEST_VOCABULARY, LARGEST_VOCABULARY = 64, 1 << 20
# Characters beyond these are rare enough to be unknown (a Chinese corpus wants a tokenizer of its own).
_LARGEST_ALPHABET = 1000
# Training takes the square of a word's length, so words are cut here: beyond 100 characters a word is unknown anyway.
_LONG_WORD = re.compile(r"\S{1000}")


def check_vocab_size(vocab_size: int) -> None:
    """Raise `DataError` if no tokenizer of so many tokens is trained."""
    if not SMALLEST_VOCABULARY <= vocab_size <= LARGEST_VOCABULARY:
        raise DataError(
            f"a vocabulary of {vocab_size} tokens is too {'small' if vocab_size < SMALLEST_VOCABULARY else 'large'}: "
            f"take from {SMALLEST_VOCABULARY} to {LARGEST_VOCABULARY:,}"
        )


def train_tokenizer(texts: Callable[[], Iterable[str]], vocab_size: int) -> Tokenizer:
    """Train a lower-case WordPiece tokenizer of at most `vocab_size` tokens, the special ones with ids 0 to 4.

    `texts` is called twice and yields the same texts both times. The result depends on nothing else.
    """
    special = list(SPECIAL_TEXTS.values())
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL_TEXTS["unknown"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # With its continuing pieces an alphabet takes at most half of the vocabulary.
    alphabet = _alphabet(tokenizer, texts(), min(_LARGEST_ALPHABET, (vocab_size - len(special)) // 4))
    continuing = [f"##{character}" for character in alphabet if _continues_a_word(tokenizer, character)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=special + continuing,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_LONG_WORD.sub(r"\g<0> ", text) for text in texts()), trainer=trainer)
    # A new tokenizer on the same vocabulary: in this one the continuing pieces count as special.
    return bert_tokenizer(tokenizer.get_vocab(), lowercase=True)


def _alphabet(tokenizer: Tokenizer, texts: Iterable[str], limit: int) -> list[str]:
    """Return the most frequent characters of the normalised texts, sorted."""
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text)
    normalised: Counter[str] = Counter()
    for character, count in raw.items():
        for part in tokenizer.normalizer.normalize_str(character):
            normalised[part] += count
    characters = sorted((part for part in normalised if not part.isspace()), key=lambda part: (-normalised[part], part))
    return sorted(characters[:limit])


def _continues_a_word(tokenizer: Tokenizer, character: str) -> bool:
    """Whether a character can stand inside a word: punctuation and ideographs are words of their own."""
    normalised = tokenizer.normalizer.normalize_str(f"a{character}")
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(normalised)) == 1
