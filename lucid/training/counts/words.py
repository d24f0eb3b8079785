"""How many tokens a corpus has for each of its words."""

import math

from lucid.data import Corpus
from lucid.data.tokenizer import continuing_tokens, load_tokenizer
from lucid.errors import DataError
from lucid.training.counts.kept import KeptCounts

# A change of what is computed takes another number, so that no older result is used.
_VERSION = 1


def tokens_per_word(corpus: Corpus, counts: KeptCounts) -> float:
    """Return the number of tokens a word, at least 1; NaN if the tokenizer of the corpus cannot be read.

    A word has spaces or punctuation around it. Scripts without spaces have no such words, so each of their tokens
    counts as one.
    """
    try:
        return counts.get(["tokens per word", _VERSION, corpus.identity], lambda: _per_word(corpus))
    except DataError:
        return math.nan


def _per_word(corpus: Corpus) -> float:
    continuing, _ = continuing_tokens(load_tokenizer(corpus.tokenizer_folder))
    words = corpus.token_frequencies()[~continuing].sum()
    return corpus.token_count / max(1, int(words))
