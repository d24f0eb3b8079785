"""Token ids of labelled examples, and batches of them as a classifier takes them.

E examples, S of them in a batch, W labels in all (one for each text, or one for each word), N token rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tokenizers import Encoding, Tokenizer

from lucid.backend import Array
from lucid.errors import ConfigError
from lucid.finetuning.examples import Examples
from lucid.kernels.masking import IGNORE_INDEX
from lucid.kernels.sequences import Sequences
from lucid.models.bert.token_rows import TokenRows

# The place of a word of which no token is left.
CUT_OFF = -1


@dataclass(frozen=True)
class Batch:
    """Examples as token rows in host memory, and where their labels are.

    `labels` are the ids for the rows of a classifier's scores (int64 [S] or [N]), with `IGNORE_INDEX` where there is
    none. `score_rows` are the rows of the scores that answer the labels numbered `numbers`.
    """

    rows: TokenRows
    labels: Array
    score_rows: Array
    numbers: Array


@dataclass(frozen=True)
class Encoded:
    """The tokens of examples: `ids` and `types` (int64), one array an example.

    `places` has, for each label of an example, the token whose scores answer it, or `CUT_OFF`. `labels` are ids.
    """

    ids: Sequence[Array]
    types: Sequence[Array]
    places: Sequence[Array]
    labels: Sequence[Array]
    by_word: bool

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def lengths(self) -> Array:
        """The tokens of each example: int64 [E]."""
        return np.array([len(ids) for ids in self.ids])

    @cached_property
    def bounds(self) -> Array:
        """The numbers of the first label of each example, and the number of all labels: int64 [E + 1]."""
        return np.cumsum([0, *map(len, self.labels)])

    @property
    def cut_off(self) -> Array:
        """The numbers of the labels whose words have no token: int64."""
        return np.flatnonzero(np.concatenate(self.places) == CUT_OFF)

    def labelled(self, examples: Array) -> int:
        """Return how many labels of these examples count in training."""
        return sum(int(np.count_nonzero(self._known(example))) for example in examples.tolist())

    def part(self, examples: Array) -> "Encoded":
        """Return these examples alone."""
        ids, types, places, labels = (
            [values[example] for example in examples.tolist()]
            for values in (self.ids, self.types, self.places, self.labels)
        )
        return Encoded(ids, types, places, labels, self.by_word)

    def _known(self, example: int) -> Array:
        return (self.labels[example] != IGNORE_INDEX) & (self.places[example] != CUT_OFF)

    def batch(self, examples: Array) -> Batch:
        """Return some examples, each of which is a row of the grid.

        The grid is as wide as the longest of all examples: dropout in attention follows from the width, so it must not
        depend on which of them a rank has.
        """
        chosen = examples.tolist()
        lengths = self.lengths[examples]
        grid = np.zeros((2, len(chosen), self.lengths.max()), np.int64)
        for row, example in enumerate(chosen):
            grid[:, row, : lengths[row]] = self.ids[example], self.types[example]
        filled = np.arange(grid.shape[2]) < lengths[:, None]
        sequences = Sequences.unpadded(filled, filled)
        rows = TokenRows.of_grid(sequences, grid[0], grid[1])
        labels = np.concatenate([self.labels[example] for example in chosen])
        numbers = np.concatenate([np.arange(self.bounds[each], self.bounds[each + 1]) for each in chosen])
        if not self.by_word:
            return Batch(rows, labels, np.arange(len(chosen)), numbers)
        starts = zip(sequences.bounds, chosen, strict=False)
        places = [np.where(self.places[each] < 0, CUT_OFF, self.places[each] + start) for start, each in starts]
        score_rows = np.concatenate(places)
        there = score_rows != CUT_OFF
        of_rows = np.full(sequences.bounds[-1], IGNORE_INDEX)
        of_rows[score_rows[there]] = labels[there]
        return Batch(rows, of_rows, score_rows[there], numbers[there])


def encode(examples: Examples, labels: Sequence[str], tokenizer: Tokenizer, longest: int, types: int) -> Encoded:
    """Return the tokens of examples, each cut to `longest`, and the ids that `labels` give to theirs.

    A label that is not among them gets `IGNORE_INDEX`. The label of a word is at its first token (Devlin et al., 2018).
    `types` is the number of token types that the model has. Raises `ConfigError` if these are too few for pairs, or if
    `longest` is below the number of special tokens.
    """
    if examples.pairs is not None and types < 2:
        raise ConfigError(f"{examples.path} has pairs, but a model with type_vocab_size 1 takes single texts")
    inputs = examples.texts if examples.pairs is None else list(zip(examples.texts, examples.pairs, strict=True))
    tokenizer.enable_truncation(longest)
    try:
        found = tokenizer.encode_batch(inputs, is_pretokenized=examples.by_word)
    finally:
        tokenizer.no_truncation()
    if any(len(each.ids) > longest for each in found):
        raise ConfigError(
            f"{examples.path}: texts or pairs cannot be cut to {longest} tokens, as many as the model takes"
        )
    numbers = {label: number for number, label in enumerate(labels)}
    return Encoded(
        [np.array(each.ids) for each in found],
        [np.array(each.type_ids) for each in found],
        [_places(each, len(own)) if examples.by_word else np.zeros(1, np.int64)
         for each, own in zip(found, examples.labels, strict=True)],
        [np.array([numbers.get(label, IGNORE_INDEX) for label in own]) for own in examples.labels],
        examples.by_word,
    )  # fmt: skip


def _places(encoding: Encoding, words: int) -> Array:
    """Return the first token of each word, or `CUT_OFF`: int64 [words]."""
    places = np.full(words, CUT_OFF)
    for token, word in reversed(list(enumerate(encoding.word_ids))):
        if word is not None:
            places[word] = token
    return places
