"""Turns sentences into token ids, and encodes each distinct word only once.

WordPiece encodes word by word, and BERT's normalisation and splitting never look across a space. So the characters
between two spaces always have the same ids. The tokenizer encodes them once, and the encoder remembers the result.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
from tokenizers import Tokenizer

from lucid.backend import Array
from lucid.data.tokenizer import without_special_tokens

# Characters of sentences that are encoded at once.
_CHARACTERS_AT_ONCE = 1 << 19
# Words that the tokenizer encodes at once: its result takes about a kilobyte a word.
_WORDS_AT_ONCE = 4096
# Memory of a remembered word without its characters: a dictionary entry, two objects, and its part of the arrays.
_BYTES_PER_WORD = 150


class _Numbers(dict[str, int]):
    """Words, numbered in the order of their first look-up."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


class TextEncoder:
    """Turns sentences into ids. A special token spelt out in the text is text: it never becomes the special id.

    The remembered words take about `most_bytes` bytes, plus the words of one call. Beyond that the encoder forgets the
    newer half, since frequent words come early.
    """

    def __init__(self, tokenizer: Tokenizer, most_bytes: int) -> None:
        self._tokenizer = without_special_tokens(tokenizer)
        self._most_bytes = most_bytes
        self._numbers, self._bytes = _Numbers(), 0
        # The ids of all known words in a row, and the number of ids of each word.
        self._ids, self._counts = np.zeros(0, np.uint32), np.zeros(0, np.uint32)

    def encode(self, sentences: list[str]) -> tuple[Array, Array]:
        """Return the ids of all sentences in a row, uint32, and the number of each, int64 [S]; no [CLS], no [SEP]."""
        ids, counts = [np.zeros(0, np.uint32)], [np.zeros(0, np.int64)]
        for block in _blocks(sentences):
            if self._bytes > self._most_bytes:
                self._forget()
            block_ids, block_counts = self._encode(block)
            ids.append(block_ids)
            counts.append(block_counts)
        return np.concatenate(ids), np.concatenate(counts)

    def _encode(self, sentences: list[str]) -> tuple[Array, Array]:
        number_of = self._numbers.__getitem__
        numbers: list[int] = []
        ends = np.zeros(len(sentences) + 1, np.int64)
        for number, sentence in enumerate(sentences, start=1):
            numbers.extend(map(number_of, sentence.split(" ")))
            ends[number] = len(numbers)
        self._learn()
        words = np.array(numbers, np.int64)
        counts = self._counts[words].astype(np.int64)
        stops = np.concatenate([[0], np.cumsum(counts)])
        starts = (np.cumsum(self._counts, dtype=np.int64) - self._counts)[words]
        ids = self._ids[np.repeat(starts - stops[:-1], counts) + np.arange(stops[-1])]
        return ids, np.diff(stops[ends])

    def _learn(self) -> None:
        """Encode the words that have a number but no ids yet."""
        unknown = list(islice(reversed(self._numbers), len(self._numbers) - len(self._counts)))[::-1]
        if not unknown:
            return
        counts, ids = [self._counts], [self._ids]
        for start in range(0, len(unknown), _WORDS_AT_ONCE):
            words = unknown[start : start + _WORDS_AT_ONCE]
            found = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(words, add_special_tokens=False)]
            counts.append(np.array([len(each) for each in found], np.uint32))
            ids.append(np.array([token for each in found for token in each], np.uint32))
        self._counts, self._ids = np.concatenate(counts), np.concatenate(ids)
        self._bytes += sum(map(len, unknown)) + _BYTES_PER_WORD * len(unknown)

    def _forget(self) -> None:
        keep = len(self._counts) // 2
        words = list(islice(self._numbers, keep))
        self._numbers = _Numbers(zip(words, range(keep), strict=True))
        self._counts = self._counts[:keep].copy()
        self._ids = self._ids[: self._counts.sum()].copy()
        self._bytes = sum(map(len, words)) + _BYTES_PER_WORD * keep


def _blocks(sentences: list[str]) -> Iterator[list[str]]:
    """Yield the sentences in blocks of `_CHARACTERS_AT_ONCE` characters or a little more."""
    start = size = 0
    for number, sentence in enumerate(sentences, start=1):
        size += len(sentence)
        if size >= _CHARACTERS_AT_ONCE or number == len(sentences):
            yield sentences[start:number]
            start, size = number, 0
