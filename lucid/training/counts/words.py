"""How many tokens a corpus has for each of its words."""

from lucid.data import Corpus
from lucid.data.tokenizer import continuing_tokens, load_tokenizer
from lucid.training.counts.kept import KeptCounts

# A change of what is computed takes another number, so that no older result is used.
_VERSION = 1


def tokens_per_word(corpus: Corpus, counts: KeptCounts) -> float:
    """Return the number of tokens a word, at least 1. In scripts without spaces, each token counts as a word.

    Raises `DataError` if the tokenizer of the corpus is damaged.
    """
    return counts.get(["tokens per word", _VERSION, corpus.identity], lambda: _per_word(corpus))


def _per_word(corpus: Corpus) -> float:
    continuing, _ = continuing_tokens(load_tokenizer(corpus.tokenizer_folder))
    words = corpus.token_frequencies()[~continuing].sum()
    return corpus.token_count / max(1, int(words))
