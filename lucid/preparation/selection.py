"""Decides which documents of the parts go into which split, and which parts make up which shard.

A document is held out for evaluation by a hash of its text, so the same text is on the same side in every corpus.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from lucid.backend import Array
from lucid.data.manifest import HELD_OUT, TRAIN
from lucid.errors import DataError
from lucid.files import written_aside
from lucid.preparation.parts import load_dropped, load_part

HASH_RANGE = 1 << 64
# Hashes that are compared at once; sorting them takes about 400 MB.
_HASHES_AT_ONCE = 1 << 23
_DUPLICATES = "duplicates.npy"


@dataclass(frozen=True)
class Lowest:
    """How many documents there are, and the two lowest of the first 64 bits of their hashes.

    `left_out` is the first place where something was left out, and why; "" if nothing was.
    """

    documents: int
    hashes: tuple[int, ...]
    left_out: str = ""

    def joined(self, other: "Lowest") -> "Lowest":
        """Return the same of the documents of both."""
        hashes = tuple(heapq.nsmallest(2, [*self.hashes, *other.hashes]))
        return Lowest(self.documents + other.documents, hashes, self.left_out or other.left_out)

    def threshold(self, held_out: float) -> int:
        """Return below which hash documents are held out, so that it is a share `held_out` of them.

        Random next segments need two documents in each split, so a small corpus holds out its two lowest hashes.
        Raises `DataError` if there are too few.
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
            raise DataError("the input holds 2 documents, too few to hold one out: add text, or pass --held-out 0")
        return max(round(held_out * HASH_RANGE), self.hashes[1 if self.documents >= 4 else 0] + 1)


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be written: the name of its split, its own, the parts whose documents it takes, and their tokens."""

    split: str
    name: str
    parts: tuple[int, ...]
    tokens: int

    @property
    def size(self) -> int:
        """Bytes, about."""
        return 2 * self.tokens


@dataclass(frozen=True)
class Selection:
    """Which documents are taken: `firsts` holds the number of each part's first document, and the total."""

    threshold: int
    drop_duplicates: bool
    duplicates: int
    firsts: tuple[int, ...]
    shards: tuple[ShardPlan, ...]

    def taken(self, folder: Path, part: int, split: str) -> Array:
        """Return bool [D]: which documents of a part in `folder` go into the split."""
        hashes, tokens = load_part(folder, part, "hashes", "document_tokens")
        taken = tokens >= 2
        taken &= (hashes[:, 0] < self.threshold) == (split == HELD_OUT)
        if self.drop_duplicates:
            first, stop = self.firsts[part : part + 2]
            taken &= ~np.load(folder / _DUPLICATES, mmap_mode="r")[first:stop]
        return taken


def select(
    folder: Path, parts: int, held_out: float, drop_duplicates: bool, tokens_per_shard: int, left_out: str
) -> Selection:
    """Decide about the documents of all parts in `folder`, numbered from 0.

    Raises `DataError` if there are too few, which says what was left out before (`left_out`), or with the parts.
    """
    lowest, firsts = Lowest(0, (), left_out), [0]
    for part in range(parts):
        hashes = load_part(folder, part, "hashes")[0][:, 0]
        of_part = Lowest(len(hashes), tuple(np.sort(hashes)[:2].tolist()), load_dropped(folder, part).first)
        lowest = lowest.joined(of_part)
        firsts.append(lowest.documents)
    threshold = lowest.threshold(held_out)
    duplicates = _find_duplicates(folder, firsts) if drop_duplicates else 0
    selection = Selection(threshold, drop_duplicates, duplicates, tuple(firsts), ())
    splits = [TRAIN, HELD_OUT] if threshold else [TRAIN]
    shards = [shard for split in splits for shard in _planned(selection, folder, split, tokens_per_shard)]
    return Selection(threshold, drop_duplicates, duplicates, tuple(firsts), tuple(shards))


def _planned(selection: Selection, folder: Path, split: str, tokens_per_shard: int) -> Iterator[ShardPlan]:
    """Yield the shards of a split; one is closed by the part that takes it to `tokens_per_shard` tokens."""
    shards, documents = 0, 0
    parts: list[int] = []
    tokens = 0
    for part in range(len(selection.firsts) - 1):
        taken = selection.taken(folder, part, split)
        if taken.any():
            parts.append(part)
            documents += int(taken.sum())
            tokens += int(load_part(folder, part, "document_tokens")[0][taken].sum())
        if tokens >= tokens_per_shard:
            yield ShardPlan(split, f"{split}-{shards:05d}", tuple(parts), tokens)
            shards, parts, tokens = shards + 1, [], 0
    if parts:
        yield ShardPlan(split, f"{split}-{shards:05d}", tuple(parts), tokens)
    if documents < (2 if split == TRAIN else 1):
        raise DataError(f"too few documents are left for {split} ({documents}): add text, or change --held-out")


def _find_duplicates(folder: Path, firsts: list[int]) -> int:
    """Mark, in a file, the documents whose text stands before them too; return how many there are.

    The hashes are compared range by range: memory is bounded, but for one byte a document.
    """
    duplicate = np.zeros(firsts[-1], bool)
    ranges = firsts[-1] // _HASHES_AT_ONCE + 1
    bounds = [number * HASH_RANGE // ranges for number in range(ranges + 1)]
    for low, high in pairwise(bounds):
        found, places = _hashes_between(folder, firsts, low, high)
        # A stable sort: of equal ones the first in the corpus comes first.
        order = np.lexsort((found[:, 1], found[:, 0]))
        found, places = found[order], places[order]
        duplicate[places[1:][(found[1:] == found[:-1]).all(axis=1)]] = True
    with written_aside(folder / _DUPLICATES, DataError) as file:
        np.save(file, duplicate)
    return int(duplicate.sum())


def _hashes_between(folder: Path, firsts: list[int], low: int, high: int) -> tuple[Array, Array]:
    """Return the hashes from `low` to below `high`, uint64 [N, 2], and the numbers of their documents."""
    found, places = [np.zeros((0, 2), np.uint64)], [np.zeros(0, np.int64)]
    for part, first in enumerate(firsts[:-1]):
        hashes, tokens = load_part(folder, part, "hashes", "document_tokens")
        here = np.flatnonzero((tokens >= 2) & (hashes[:, 0] >= low) & (hashes[:, 0] < high))
        found.append(hashes[here])
        places.append(first + here)
    return np.concatenate(found), np.concatenate(places)
