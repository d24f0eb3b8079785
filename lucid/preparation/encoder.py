"""Turns sentences into ids, each distinct word once.

WordPiece goes word by word, and BERT's normalisation and splitting never join or tell apart anything across a space. So
what stands between two spaces has the same ids wherever it stands; the tokenizer is asked for them once.
"""

from itertools import islice

import numpy as np
from tokenizers import Tokenizer

from lucid.backend import Array

# Characters of the words that are remembered, about 400,000 of them in 100 MB; beyond, all are forgotten.
_MOST_CHARACTERS = 1 << 22


class _Numbers(dict[str, int]):
    """Words, numbered in the order in which they were first asked for."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


class TextEncoder:
    """Turns sentences into ids. A special token spelt out in the text is text: it never becomes the special id."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = Tokenizer(tokenizer.model)
        self._tokenizer.normalizer = tokenizer.normalizer
        self._tokenizer.pre_tokenizer = tokenizer.pre_tokenizer
        self._forget()

    def _forget(self) -> None:
        self._numbers, self._characters = _Numbers(), 0
        # The ids of all known words in a row, and how many each word has.
        self._ids, self._counts = np.zeros(0, np.uint32), np.zeros(0, np.int64)

    def encode(self, sentences: list[str]) -> tuple[Array, Array]:
        """Return the ids of all sentences in a row, uint32, and how many each has, int64 [S]; no [CLS], no [SEP]."""
        if self._characters > _MOST_CHARACTERS:
            self._forget()
        number_of = self._numbers.__getitem__
        numbers: list[int] = []
        ends = np.zeros(len(sentences) + 1, np.int64)
        for place, sentence in enumerate(sentences, start=1):
            numbers.extend(map(number_of, sentence.split(" ")))
            ends[place] = len(numbers)
        self._learn()
        words = np.array(numbers, np.int64)
        counts = self._counts[words]
        stops = np.concatenate([[0], np.cumsum(counts)])
        starts = (np.cumsum(self._counts) - self._counts)[words]
        ids = self._ids[np.repeat(starts - stops[:-1], counts) + np.arange(stops[-1])]
        return ids, np.diff(stops[ends])

    def _learn(self) -> None:
        """Encode the words that were asked for but are not known yet."""
        unknown = list(islice(reversed(self._numbers), len(self._numbers) - len(self._counts)))[::-1]
        if not unknown:
            return
        found = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(unknown, add_special_tokens=False)]
        self._counts = np.concatenate([self._counts, [len(ids) for ids in found]])
        self._ids = np.concatenate([self._ids, np.array([token for ids in found for token in ids], np.uint32)])
        self._characters += sum(map(len, unknown))
