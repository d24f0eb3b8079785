"""Where the documents of a corpus come from: the file and the line that `lucid prepare` noted for each of them.

Training does not read this. Corpora that were prepared by earlier versions do not have it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lucid.backend import Array
from lucid.data.manifest import MANIFEST_NAME, ORIGIN_DTYPE, ORIGINS, Manifest, shard_file
from lucid.data.shards import mapped, refuse_damaged


@dataclass(frozen=True)
class Input:
    """What `lucid prepare` noted about an input of a corpus: its name, a path from where it was looked for."""

    name: str
    sha256: str | None


def inputs_of(manifest: Manifest, folder: Path) -> list[Input]:
    """Return the inputs of the corpus in `folder`. Raises `DataError` if its manifest does not name them."""
    try:
        return [_input(entry) for entry in manifest.made_from["inputs"]]
    except (KeyError, TypeError):
        refuse_damaged(folder / MANIFEST_NAME, "it does not name the inputs")


def _input(entry: dict[str, Any]) -> Input:
    return Input(str(entry["name"]), entry.get("sha256"))


def agreement(given: str, corpus: str, name: str) -> int:
    """Return how many parts of a path that a user gives are those of an input of a corpus; 0 if it is another path.

    It is the same path if it ends with the `name` of the input, or is the end of that. The name of the `corpus` may
    stand before it.
    """
    parts, known = PurePosixPath(given).parts[::-1], PurePosixPath(name).parts[::-1]
    whole = known + PurePosixPath(corpus).parts[::-1]
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(parts, whole, strict=False)))
    return same if same >= min(len(parts), len(known)) else 0


class Origins:
    """The origins of the documents of one split, by their numbers in it.

    An origin is the number of an input, and a line counted from 1: of a table the row, of Python's documentation the
    document.
    """

    def __init__(self, folder: Path, inputs: list[Input], shards: list[Array]) -> None:
        self._folder, self._inputs, self._shards = folder, inputs, shards
        self._first = np.cumsum([0, *map(len, shards)])

    @classmethod
    def open(cls, folder: Path, split: str) -> "Origins | None":
        """Open the origins of a split of the corpus in `folder`; None if the corpus does not have them.

        Raises `DataError` if they are damaged.
        """
        manifest = Manifest.read(folder)
        shards = manifest.splits[split].shards
        files = [shard_file(shard.name, ORIGINS) for shard in shards]
        if not all(file in manifest.files for file in files):
            return None
        counts = [shard.documents for shard in shards]
        arrays = [mapped(folder / file, ORIGIN_DTYPE, count, 2) for file, count in zip(files, counts, strict=True)]
        return cls(folder, inputs_of(manifest, folder), arrays)

    def find(self, sources: Collection[int], line: int) -> tuple[Array, Array]:
        """Return the documents that begin at a line of these inputs, and those that are the last to begin before it.

        Both are numbers, int64 [D]; each input has a document of the second kind at most.
        """
        exact, before = [np.zeros(0, np.int64)], {}
        for shard, first in zip(self._shards, self._first.tolist(), strict=False):
            for source in sources:
                here = np.flatnonzero((shard[:, 0] == source) & (shard[:, 1] <= line))
                if len(here):
                    before[source] = int(here[-1]) + first
                exact.append(here[shard[here, 1] == line] + first)
        return np.unique(np.concatenate(exact)), np.array(sorted(before.values()), np.int64)

    def of(self, documents: Array) -> list[str]:
        """Return "name:line" of each document in `documents`, int64 [D]. Raises `DataError` if an input is unknown."""
        found = []
        for number in documents.tolist():
            shard = int(np.searchsorted(self._first, number, side="right")) - 1
            source, line = self._shards[shard][number - self._first[shard]].tolist()
            if not 0 <= source < len(self._inputs):
                refuse_damaged(self._folder, f"a document comes from input {source} of {len(self._inputs)}")
            found.append(f"{self._inputs[source].name}:{line}")
        return found
