"""Makes text of the tokens of a corpus again."""

from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer

from lucid.data.shards import Corpus
from lucid.data.tokenizer import CONTINUING, special_tokens, tokens_by_id


def decoded_documents(corpus: Corpus, tokenizer: Tokenizer, most_tokens: int) -> Iterator[str]:
    """Yield the text of documents of the corpus, with a space between any two words. Unknown words are left out.

    If the corpus has more than `most_tokens` tokens, documents are taken at equal distances. `tokenizer` must be the
    corpus's own. The text is normalised as the tokenizer does that.
    """
    texts = tokens_by_id(tokenizer)
    texts[special_tokens(tokenizer).unknown] = ""
    for document in range(0, corpus.document_count, -(-corpus.token_count // most_tokens)):
        corpus.check_unchanged()
        first, stop = corpus.sentences.at(corpus.documents.at(np.array([document, document + 1]))).tolist()
        words = " ".join(texts[token] for token in corpus.tokens(np.arange(first, stop)).tolist())
        yield words.replace(f" {CONTINUING}", "")
