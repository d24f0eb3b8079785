"""Extends the vocabulary of a tokenizer by the words of a text that it splits most.

Only whole words are added: they shorten held-out text as much as pieces that are merged from others, or more
(`docs/data.md`), and the row of a word can be made from the rows of its pieces.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from lucid.data.tokenizer import LARGEST_VOCABULARY, special_tokens, without_added_tokens
from lucid.errors import DataError
from lucid.preparation.encoder import TextEncoder
from lucid.preparation.inputs.sources import Choice, find_sources
from lucid.preparation.inputs.standard_input import spooled
from lucid.preparation.parts import TextSettings
from lucid.preparation.processes import run_tasks
from lucid.preparation.selection import HELD_OUT_FRACTION
from lucid.preparation.stages import Report, make_plan
from lucid.preparation.text_sample import TextSample, blocks, sampling

# Stretches of text between spaces that are held until they are split into words.
_STRETCHES = 1 << 19


def sample(
    inputs: Sequence[str | Path],
    choice: Choice,
    settings: TextSettings,
    folder: Path,
    processes: int,
    report: Report,
) -> TextSample:
    """Write a sample of the text of `inputs` (see `prepare`) to `folder`, and return it. Raises `DataError`."""
    sources, others = find_sources(inputs, choice)
    with spooled(sources, folder, choice) as readable:
        plan = make_plan(readable, others, settings, {}, report)
        writer, tasks = sampling(settings, plan.portions, folder)
        done, total = 0, sum(task.size for task in tasks)
        report("sampling", done, total)
        for task in run_tasks(writer, tasks, processes):
            done += task.size
            report("sampling", done, total)
        return TextSample(settings, tasks, HELD_OUT_FRACTION, plan.dropped.first, otherwise="")


def count_words(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """Return how often each word occurs, as the tokenizer normalises and splits the texts.

    Tokens that were added to the tokenizer are no words. Memory is bounded as it is where a tokenizer is trained: texts
    after a limit of distinct words are left out.
    """
    encoder = TextEncoder(tokenizer, 0)
    words: Counter[str] = Counter()
    for stretches in _stretches(texts):
        for stretch, count in stretches.items():
            for word in encoder.words(stretch):
                words[word] += count
    return words


def _stretches(texts: Iterable[str]) -> Iterator[Counter[str]]:
    """Yield how often each stretch between spaces occurs, for some of the texts at a time."""
    found: Counter[str] = Counter()
    for block in blocks(texts):
        found.update(block.split())
        if len(found) > _STRETCHES:
            yield found
            found = Counter()
    yield found


@dataclass(frozen=True)
class NewWord:
    """A word that becomes a token, how often it occurs, and the ids of the tokens that have stood for it.

    A word that was unknown has no such tokens.
    """

    text: str
    count: int
    pieces: tuple[int, ...]

    @property
    def gain(self) -> int:
        """What a token for the word is worth: the tokens that it saves.

        An unknown word is worth its characters, which are lost without it. Numbers are worth nothing, because there is
        no end of them.
        """
        saved = len(self.pieces) - 1 if self.pieces else len(self.text)
        return 0 if self.text.isdecimal() else self.count * saved


class WordPieces:
    """The tokens of whole words."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._model = without_added_tokens(tokenizer).model
        self._unknown = special_tokens(tokenizer).unknown

    def of(self, word: str) -> tuple[int, ...]:
        """Return the ids of a word's tokens; none if the vocabulary lacks its characters or it is too long."""
        ids = tuple(token.id for token in self._model.tokenize(word))
        return () if self._unknown in ids else ids

    def can_hold(self, word: str) -> bool:
        """Return whether a word would be found if it were in the vocabulary: longer ones are always unknown."""
        return len(word) <= int(self._model.max_input_chars_per_word)


def most_split(tokenizer: Tokenizer, counts: Mapping[str, int], tokens: int, at_least: int) -> list[NewWord]:
    """Return the `tokens` words that are worth most, the best first, among those that occur `at_least` times.

    Of equals the first in the order of code points is taken. Raises `DataError` if there are too few.
    """
    if (size := tokenizer.get_vocab_size() + tokens) > LARGEST_VOCABULARY:
        raise DataError(f"a vocabulary of {size:,} tokens is too large: {LARGEST_VOCABULARY:,} is the most")
    pieces, known = WordPieces(tokenizer), tokenizer.get_vocab()
    frequent = (text for text, count in counts.items() if count >= at_least and pieces.can_hold(text))
    # A word may be spelt like an added token without being it: some are found only as the text has them, before it is
    # normalised.
    new = (text for text in frequent if text not in known)
    words = [word for text in new if (word := NewWord(text, counts[text], pieces.of(text))).gain]
    if len(words) < tokens:
        rarer = ", take rarer words too (--at-least)" if at_least > 1 else ""
        raise DataError(
            f"{tokens:,} new tokens were asked for, but the text has only {len(words):,} words that are frequent "
            f"enough (--at-least {at_least}) and not one token already: ask for fewer (--tokens){rarer}, or add text"
        )
    return sorted(words, key=lambda word: (-word.gain, word.text))[:tokens]


def with_words(tokenizer: Tokenizer, words: Iterable[str]) -> Tokenizer:
    """Return the tokenizer with `words` at the end of its vocabulary, so that the longest match finds them.

    No token gets another id: tokens that were added after the vocabulary become a part of it. Of the other words only
    those that begin with a new token, or with one that was added, may be split otherwise.
    """
    content = json.loads(tokenizer.to_str())
    vocabulary = tokenizer.get_vocab()
    content["model"]["vocab"] = vocabulary | {word: len(vocabulary) + number for number, word in enumerate(words)}
    return Tokenizer.from_str(json.dumps(content))


@dataclass(frozen=True)
class Coverage:
    """How a tokenizer encodes a text: words, their tokens, and those of the tokens that are [UNK]."""

    words: int
    tokens: int
    unknown: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, counts: Mapping[str, int]) -> "Coverage":
        """Return the coverage of the words with these counts."""
        pieces = WordPieces(tokenizer)
        tokens = unknown = 0
        for word, count in counts.items():
            found = pieces.of(word)
            tokens += count * max(len(found), 1)
            unknown += count * (not found)
        return cls(sum(counts.values()), tokens, unknown)

    def __str__(self) -> str:
        words, tokens = max(self.words, 1), max(self.tokens, 1)
        return f"{self.tokens / words:.3f} tokens a word, {self.unknown / tokens:.2%} of them [UNK]"
