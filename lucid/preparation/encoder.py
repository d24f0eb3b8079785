"""Turns sentences into token ids, and encodes each distinct word only once.

WordPiece encodes word by word, and BERT's normalisation and splitting never look across a space. So the characters
between two spaces always have the same ids. The tokenizer encodes them once, and the encoder remembers the result.
"""

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, groupby, islice

import numpy as np
from tokenizers import AddedToken, Tokenizer

from lucid.backend import Array
from lucid.data.tokenizer import added_tokens, without_added_tokens, without_special_tokens

# Characters of sentences that are encoded at once.
_CHARACTERS_AT_ONCE = 1 << 19
# Words and characters that the tokenizer encodes at once: its result takes about a kilobyte a word.
_WORDS_AT_ONCE, _WORD_CHARACTERS_AT_ONCE = 4096, 1 << 17
# Longer words are split where the tokenizer would split them, because it takes hundreds of bytes for each character.
_LONG_WORD = 1 << 14
# Marks a piece of a long word that is no added token, even if it looks like one now: half a surrogate pair, which no
# text holds.
_NOT_ADDED = "\ud800"
# Stands after each of the words that are encoded together. No word holds one.
_END_OF_WORD = AddedToken(" ", normalized=False)
# Chinese characters, of which BERT's normalisation makes words, and what stands between them.
_SPLIT_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff"
_IDEOGRAPH, _APART = re.compile(f"[{_SPLIT_IDEOGRAPHS}]"), re.compile(f"[{_SPLIT_IDEOGRAPHS}]|[^{_SPLIT_IDEOGRAPHS}]+")
# Categories of the characters of a word.
_IN_WORDS = {"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc"}
# Memory of a remembered word without its characters and ids: a dictionary entry, its number, and its count of ids.
_BYTES_PER_WORD = 110


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
        self._tokenizer, self._plain = without_special_tokens(tokenizer), without_added_tokens(tokenizer)
        self._tokenizer.add_tokens([_END_OF_WORD])
        self._plain.add_tokens([_END_OF_WORD])
        added = added_tokens(tokenizer).values()
        # The tokenizer looks for some added tokens in the text, and then for the others in the normalised text.
        self._in_text = _Finder({token.content: token for token in added if not token.normalized})
        self._in_normalised = _Finder({self._normalised(token.content): token for token in added if token.normalized})
        # Text with few spaces repeats its words once these are apart. An added token may depend on what is around it.
        normalizer = tokenizer.normalizer
        self._splits_ideographs = normalizer is not None and normalizer.handle_chinese_chars and not added
        self._most_bytes = most_bytes
        self._numbers, self._bytes = _Numbers(), 0
        # The ids of all known words in a row, and the number of ids of each word.
        self._ids, self._counts = np.zeros(0, np.uint32), np.zeros(0, np.uint32)

    def encode(self, sentences: list[str]) -> tuple[Array, Array]:
        """Return the ids of all sentences in a row, uint32, and the number of each, int64 [S]; no [CLS], no [SEP]."""
        ids, total = [np.zeros(0, np.uint32)], np.zeros(len(sentences), np.int64)
        for owners, texts in _blocks(map(self._parts, sentences)):
            if self._bytes > self._most_bytes:
                self._forget()
            block_ids, counts = self._encode(texts)
            ids.append(block_ids)
            np.add.at(total, np.array(owners), counts)
        return np.concatenate(ids), total

    def words(self, text: str) -> Iterator[str]:
        """Yield the words, normalised, into which the tokenizer splits a text without spaces; no added tokens.

        Of a word that is unknown for its length only the first characters are yielded, one more than are allowed.
        """
        for words in self._split(text):
            if words.startswith(_NOT_ADDED):
                yield from filter(None, (word.removeprefix(_NOT_ADDED) for word in words.split(" ")))

    def _parts(self, sentence: str) -> Iterable[str]:
        """Return a sentence in parts, each of some words with spaces between them."""
        if self._splits_ideographs and not sentence.isascii() and _IDEOGRAPH.search(sentence):
            sentence = " ".join(_APART.findall(sentence))
        if len(sentence) <= _LONG_WORD:
            return (sentence,)
        groups = groupby(sentence.split(" "), lambda word: len(word) > _LONG_WORD)
        return chain.from_iterable(
            chain.from_iterable(map(self._split, words)) if is_long else (" ".join(words),) for is_long, words in groups
        )

    def _split(self, word: str) -> Iterator[str]:
        """Yield the words into which the tokenizer splits a long one, some at a time, and its added tokens."""
        for text, token in self._in_text.split(word):
            if token:
                yield token
                continue
            for normalised, token in self._in_normalised.split(self._normalised(text)):
                yield from (token,) if token else self._words(normalised)

    def _normalised(self, text: str) -> str:
        """Return the normalised form of a text, of which each character has its own."""
        if not (normalizer := self._tokenizer.normalizer):
            return text
        starts = range(0, len(text), _LONG_WORD)
        return "".join(normalizer.normalize_str(text[start : start + _LONG_WORD]) for start in starts)

    def _words(self, normalised: str) -> Iterator[str]:
        """Yield the words of a normalised text without added tokens, some at a time.

        A word of more than `longest` characters is unknown, so the rest of its characters do not matter.
        """
        split, longest = self._tokenizer.pre_tokenizer.pre_tokenize_str, self._tokenizer.model.max_input_chars_per_word
        rest = ""
        for start in range(0, len(normalised), _LONG_WORD):
            text = rest + normalised[start : start + _LONG_WORD]
            words = [found[: longest + 1] for found, _ in split(text)]
            # The last word may go on in the next part.
            rest = words.pop() if words and not text[-1].isspace() else ""
            yield " ".join(_NOT_ADDED + word for word in words)
        yield _NOT_ADDED + rest

    def _encode(self, texts: list[str]) -> tuple[Array, Array]:
        """Return the ids of all words in a row, uint32, and the number of each text, int64."""
        words = " ".join(texts).split(" ")
        word_numbers = np.fromiter(map(self._numbers.__getitem__, words), np.int64, len(words))
        ends = np.cumsum([0, *(text.count(" ") + 1 for text in texts)])
        self._learn()
        counts = self._counts[word_numbers].astype(np.int64)
        stops = np.concatenate([[0], np.cumsum(counts)])
        starts = (np.cumsum(self._counts, dtype=np.int64) - self._counts)[word_numbers]
        ids = self._ids[np.repeat(starts - stops[:-1], counts) + np.arange(stops[-1])]
        return ids, np.diff(stops[ends])

    def _learn(self) -> None:
        """Encode the words that have a number but no ids yet."""
        unknown = list(islice(reversed(self._numbers), len(self._numbers) - len(self._counts)))[::-1]
        if not unknown:
            return
        counts, ids = [self._counts], [self._ids]
        for words in _batches(unknown):
            for is_piece, group in groupby(words, lambda word: word.startswith(_NOT_ADDED)):
                tokenizer = self._plain if is_piece else self._tokenizer
                found = _ids_of(tokenizer, (word.removeprefix(_NOT_ADDED) for word in group))
                ends = np.flatnonzero(found == tokenizer.token_to_id(_END_OF_WORD.content))
                counts.append(np.diff(ends, prepend=-1).astype(np.uint32) - np.uint32(1))
                ids.append(np.delete(found, ends))
        self._bytes += _memory_of(unknown, sum(map(len, ids[1:])))
        self._counts, self._ids = np.concatenate(counts), np.concatenate(ids)

    def _forget(self) -> None:
        keep = len(self._counts) // 2
        words = list(islice(self._numbers, keep))
        self._numbers = _Numbers(zip(words, range(keep), strict=True))
        self._counts = self._counts[:keep].copy()
        self._ids = self._ids[: self._counts.sum()].copy()
        self._bytes = _memory_of(words, len(self._ids))


def _ids_of(tokenizer: Tokenizer, words: Iterable[str]) -> Array:
    """Return the ids of words in a row, uint32, with the id of `_END_OF_WORD` after each."""
    text = "".join(f"{word}{_END_OF_WORD.content}" for word in words)
    [encoding] = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return np.array(encoding.ids, np.uint32)


class _Finder:
    """Finds added tokens, given by the text that stands for each, as the tokenizer does."""

    def __init__(self, tokens: Mapping[str, AddedToken]) -> None:
        self._tokens = tokens
        # Of several that begin at one place, the longest counts.
        texts = sorted(filter(None, tokens), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, texts))) if texts else None

    def split(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield the parts of a text in order, each with the added token that it is, or ""."""
        start = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            token = self._tokens[match[0]]
            if token.single_word and _is_within_word(match):
                continue
            yield text[start : match.start()], ""
            yield match[0], token.content
            start = match.end()
        yield text[start:], ""


def _is_within_word(match: re.Match[str]) -> bool:
    text, start, stop = match.string, match.start(), match.end()
    return any(map(_continues_word, text[max(start - 1, 0) : start] + text[stop : stop + 1]))


def _continues_word(character: str) -> bool:
    """Return whether a character is one of a word for the tokenizer, as a letter, an accent and a digit are."""
    is_letter = character.islower() or character.isupper()  # also those in circles, which have another category
    return is_letter or unicodedata.category(character) in _IN_WORDS or character in "\u200c\u200d"


def _memory_of(words: list[str], ids: int) -> int:
    return sum(map(sys.getsizeof, words)) + _BYTES_PER_WORD * len(words) + 4 * ids


def _blocks(sentences: Iterable[Iterable[str]]) -> Iterator[tuple[list[int], list[str]]]:
    """Gather the parts of sentences, with the sentences' numbers, to `_CHARACTERS_AT_ONCE` characters or a few more."""
    owners: list[int] = []
    texts: list[str] = []
    size = 0
    for number, parts in enumerate(sentences):
        for text in parts:
            owners.append(number)
            texts.append(text)
            size += len(text)
            if size >= _CHARACTERS_AT_ONCE:
                yield owners, texts
                owners, texts, size = [], [], 0
    if texts:
        yield owners, texts


def _batches(words: list[str]) -> Iterator[list[str]]:
    """Yield the words in lists of at most `_WORDS_AT_ONCE` words and about `_WORD_CHARACTERS_AT_ONCE` characters."""
    start = size = 0
    for number, word in enumerate(words, start=1):
        size += len(word)
        if size >= _WORD_CHARACTERS_AT_ONCE or number - start == _WORDS_AT_ONCE or number == len(words):
            yield words[start:number]
            start, size = number, 0
