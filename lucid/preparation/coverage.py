"""How well a vocabulary covers a text: the documents of which it knows least, and what of it no text can have."""

from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer

from lucid.backend import Array
from lucid.data.manifest import LeastKnown
from lucid.data.tokenizer import CONTINUING, SPECIAL_TEXTS, tokens_by_id, without_added_tokens

# Documents that are named for each split. One with fewer unknown tokens says little about the vocabulary.
_NAMED, _FEWEST = 5, 10
# Shares of a vocabulary: above the first, tokens are more than the few odd ones of every vocabulary; below the second,
# tokens with capital letters are none of the language, such as [BOS].
_MANY, _FEW = 0.01, 0.001


def unknown_in(tokens: Array, document_tokens: Array, origins: Array, unknown: int) -> list[LeastKnown]:
    """Return the documents with the largest shares of the token `unknown`, as `largest_shares` does.

    `tokens` holds the ids of all documents in a row, `document_tokens`, int64 [D], the number of each, and `origins`,
    int64 [D, 2], its source and line.
    """
    places = np.flatnonzero(tokens == unknown)
    documents = np.searchsorted(np.cumsum(document_tokens), places, side="right")
    counts = np.bincount(documents, minlength=len(document_tokens))
    many = np.flatnonzero(counts >= _FEWEST)
    rows = np.column_stack([origins, document_tokens, counts])[many].tolist()
    return largest_shares(LeastKnown(*row) for row in rows)


def largest_shares(documents: Iterable[LeastKnown]) -> list[LeastKnown]:
    """Return the few documents with the largest shares of unknown tokens, of equal ones the first."""
    return sorted(documents, key=lambda document: -document.unknown / document.tokens)[:_NAMED]


def words_among(tokenizer: Tokenizer, frequencies: Array) -> int:
    """Return the number of words in a text with these numbers of each token, int64 [V].

    A word is what the tokenizer looks up in the vocabulary: text between spaces and punctuation, or one Chinese
    character. Each has one token that continues no other.
    """
    begins = np.array([not token.startswith(CONTINUING) for token in tokens_by_id(tokenizer)])
    return int(frequencies[begins].sum())


def contradictions(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield a sentence for each way in which the vocabulary of a tokenizer contradicts its normaliser.

    Then one of the two is not the one that the model was trained with.
    """
    normalize = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    tokens = [token for token in tokens_by_id(without_added_tokens(tokenizer)) if token not in SPECIAL_TEXTS.values()]
    # Chinese characters get spaces around them.
    lost = [token for token in tokens if normalize(token).replace(" ", "") != token]
    capitals = [token for token in tokens if token != token.lower()]
    for setting, change, without in (
        ("do_lower_case", "makes capital letters small", [token for token in lost if token != token.lower()]),
        ("strip_accents", "strips accents", [token for token in lost if token == token.lower()]),
    ):
        if len(without) > _MANY * len(tokens):
            yield (
                f"{len(without):,} of the {len(tokens):,} tokens of its vocabulary, such as {without[0]}, are in no "
                f"text, because it {change}: set {setting} to false in tokenizer_config.json if its model keeps them"
            )
    if normalize("A") == "A" and len(capitals) < _FEW * len(tokens) and any(map(str.islower, tokens)):
        yield (
            "its vocabulary has no capital letters, but it does not make them small, so words with capital letters are "
            "[UNK]: set do_lower_case to true in tokenizer_config.json"
        )
