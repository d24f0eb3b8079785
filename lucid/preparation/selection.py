"""Decides which documents of the parts go into which split, and which parts make up which shard.

A document is held out for evaluation by the hash of its text, so equal texts are in the same split in every corpus but
the smallest: those hold out more than their fraction, to have two.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from lucid.backend import Array
from lucid.data.manifest import HELD_OUT, TRAIN
from lucid.errors import DataError
from lucid.files import written_aside
from lucid.preparation.line_filter import REPEATED_LINE
from lucid.preparation.parts import load_dropped, load_part

HASH_RANGE = 1 << 64
# Hashes that are compared at once; sorting them takes about 400 MB.
_HASHES_AT_ONCE = 1 << 23
_DUPLICATES = "duplicates.npy"
# The fraction of the documents that is held out unless another one is given.
HELD_OUT_FRACTION = 0.05
# What a command can do that chooses how much it holds out.
HOLD_NONE_OUT = ", or pass --held-out 0"
# Different texts that a message counts.
_MANY = 1000


@dataclass(frozen=True)
class Census:
    """The number of documents, and the two lowest of the first 64 bits of their hashes.

    `left_out` is the first place where something was left out, and why; "" if nothing was.
    """

    documents: int = 0
    lowest: tuple[int, ...] = ()
    left_out: str = ""

    @classmethod
    def of(cls, hashes: Array, left_out: str) -> "Census":
        """Return the census of documents with these hashes, uint64 [D]."""
        return cls(len(hashes), tuple(np.sort(hashes)[:2].tolist()), left_out)

    def __add__(self, other: "Census") -> "Census":
        """Return the census of the documents of both."""
        lowest = tuple(sorted(self.lowest + other.lowest)[:2])
        return Census(self.documents + other.documents, lowest, self.left_out or other.left_out)

    def threshold(self, held_out: float, otherwise: str = HOLD_NONE_OUT) -> int:
        """Return the hash below which documents are held out, so that they are a fraction `held_out` of all.

        Random next segments need two documents in each split, so a small corpus holds out its two lowest hashes.
        Raises `DataError` if there are too few; `otherwise` says what helps if there is no more text.
        """
        if self.documents < 2:
            why = f". First left out: {self.left_out}" if self.left_out else ""
            raise DataError(
                f"the input holds {self.documents} document{'s' * (self.documents != 1)} that can be used, and "
                f"pretraining needs two or more: add text, or separate the documents (by a blank line in .txt){why}"
            )
        if held_out == 0:
            return 0
        if self.documents < 3:
            raise DataError(f"the input holds 2 documents, too few to hold one out: add text{otherwise}")
        return max(round(held_out * HASH_RANGE), self.lowest[1 if self.documents >= 4 else 0] + 1)


@dataclass(frozen=True)
class ShardPlan:
    """A shard to be written: its split, its name, the parts from which it takes documents, and their tokens."""

    split: str
    name: str
    parts: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Selection:
    """Which documents of the parts in `folder` are taken.

    Documents whose hash is below `threshold` are held out. `firsts` holds the number of each part's first document,
    and the total. `duplicates` is the number of documents that are left out since their text occurs before them.
    """

    folder: Path
    threshold: int
    firsts: tuple[int, ...]
    duplicates: int

    def holds_out_more_than(self, held_out: float) -> bool:
        """Return whether more hashes are held out than a fraction `held_out`, because there are few documents."""
        return self.threshold > round(held_out * HASH_RANGE)

    def taken(self, part: int, split: str) -> Array:
        """Return bool [D]: which documents of a part go into the split."""
        hashes, tokens = load_part(self.folder, part, "hashes", "document_tokens")
        taken = tokens >= 2
        taken &= (hashes[:, 0] < self.threshold) == (split == HELD_OUT)
        if self.duplicates:
            first, stop = self.firsts[part : part + 2]
            taken &= ~np.load(self.folder / _DUPLICATES, mmap_mode="r")[first:stop]
        return taken

    def shards(self, tokens_per_shard: int) -> list[ShardPlan]:
        """Return the shards of all splits. Raises `DataError` if a split gets too few documents."""
        splits = [TRAIN, HELD_OUT] if self.threshold else [TRAIN]
        return [shard for split in splits for shard in self._shards_of(split, tokens_per_shard)]

    def _shards_of(self, split: str, tokens_per_shard: int) -> Iterator[ShardPlan]:
        """Yield the shards of a split. The part that takes a shard to `tokens_per_shard` tokens closes it."""
        shards = documents = tokens = 0
        parts: list[int] = []
        for part in range(len(self.firsts) - 1):
            taken = self.taken(part, split)
            if taken.any():
                parts.append(part)
                documents += int(taken.sum())
                tokens += int(load_part(self.folder, part, "document_tokens")[0][taken].sum())
            if tokens >= tokens_per_shard:
                yield ShardPlan(split, f"{split}-{shards:05d}", tuple(parts), tokens)
                shards, parts, tokens = shards + 1, [], 0
        if parts:
            yield ShardPlan(split, f"{split}-{shards:05d}", tuple(parts), tokens)
        if documents < (2 if split == TRAIN else 1):
            raise DataError(
                f"too few documents are left for {split} ({documents} of {self.firsts[-1]}): {self._why(split)}"
            )

    def _why(self, split: str) -> str:
        """Return what has become of the documents that are not in a split, and what to do."""
        short = elsewhere = repeated = 0
        texts: set[bytes] = set()
        for part in range(len(self.firsts) - 1):
            hashes, tokens = load_part(self.folder, part, "hashes", "document_tokens")
            short += int((tokens < 2).sum())
            elsewhere += int(self.taken(part, HELD_OUT if split == TRAIN else TRAIN).sum())
            repeated += load_dropped(self.folder, part).counts.get(REPEATED_LINE, 0)
            if len(texts) < _MANY:
                texts.update(each.tobytes() for each in hashes[:_MANY])
        found = []
        if short:
            found.append(f"{short:,} have fewer than two tokens")
        if self.duplicates:
            found.append(f"{self.duplicates:,} are duplicates, which were left out")
        if elsewhere:
            found.append(f"{elsewhere:,} are in {HELD_OUT if split == TRAIN else TRAIN}")
        if len(texts) < min(_MANY, self.firsts[-1] - short) and not self.duplicates:
            found.append(f"only {len(texts):,} differ, and equal ones go into one split")
        change = "--held-out"
        if repeated:
            found.append(f"{repeated:,} repeated lines were left out")
            change = "--drop-repeated-lines or --held-out"
        return f"{', '.join(found)}: add other text, or change {change}"


def select(folder: Path, parts: int, held_out: float, drop_duplicates: bool, left_out: str) -> Selection:
    """Select among the documents of all parts in `folder`, numbered from 0.

    Raises `DataError` if there are too few. It names the first omission: `left_out`, or the first of the parts.
    """
    census, firsts = Census(left_out=left_out), [0]
    for part in range(parts):
        census += Census.of(load_part(folder, part, "hashes")[0][:, 0], load_dropped(folder, part).first)
        firsts.append(census.documents)
    threshold = census.threshold(held_out)
    return Selection(folder, threshold, tuple(firsts), _find_duplicates(folder, firsts) if drop_duplicates else 0)


def _find_duplicates(folder: Path, firsts: list[int]) -> int:
    """Mark, in a file, the documents whose text occurs before them; return how many there are."""

    def hashes_of(part: int) -> tuple[Array, Array]:
        hashes, tokens = load_part(folder, part, "hashes", "document_tokens")
        return hashes, tokens >= 2

    return mark_copies(hashes_of, firsts, folder / _DUPLICATES)


def mark_copies(hashes_of: Callable[[int], tuple[Array, Array]], firsts: Sequence[int], path: Path) -> int:
    """Write bool [D] as the file `path`: which documents have the hash of one before them. Return how many have.

    `hashes_of` returns the hashes of a part, uint64 [P, 2], and whether each counts, bool [P]. `firsts` holds the
    number of the first document of each part, and D. The hashes are compared range by range: memory is bounded, but for
    one byte a document.
    """
    copies = np.zeros(firsts[-1], bool)
    ranges = firsts[-1] // _HASHES_AT_ONCE + 1
    bounds = [number * HASH_RANGE // ranges for number in range(ranges + 1)]
    for low, high in pairwise(bounds):
        hashes, documents = _hashes_between(hashes_of, firsts, low, high)
        # The sort is stable: the first of equal ones in the corpus stays the first.
        order = np.lexsort((hashes[:, 1], hashes[:, 0]))
        hashes, documents = hashes[order], documents[order]
        copies[documents[1:][(hashes[1:] == hashes[:-1]).all(axis=1)]] = True
    with written_aside(path, DataError) as file:
        np.save(file, copies)
    return int(copies.sum())


def _hashes_between(
    hashes_of: Callable[[int], tuple[Array, Array]], firsts: Sequence[int], low: int, high: int
) -> tuple[Array, Array]:
    """Return the hashes from `low` to below `high`, uint64 [N, 2], and the numbers of their documents."""
    found, documents = [np.zeros((0, 2), np.uint64)], [np.zeros(0, np.int64)]
    for part, first in enumerate(firsts[:-1]):
        hashes, is_counted = hashes_of(part)
        here = np.flatnonzero(is_counted & (hashes[:, 0] >= low) & (hashes[:, 0] < high))
        found.append(hashes[here])
        documents.append(first + here)
    return np.concatenate(found), np.concatenate(documents)
