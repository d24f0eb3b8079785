"""Where the documents of a corpus come from: the file and the line that `lucid prepare` noted for each of them.

Training does not read this. Corpora that were prepared by earlier versions do not have it.
"""

from pathlib import Path

import numpy as np

from lucid.backend import Array
from lucid.data.manifest import MANIFEST_NAME, ORIGIN_DTYPE, ORIGINS, Manifest, shard_file
from lucid.data.shards import mapped, refuse_damaged


class Origins:
    """The origins of the documents of one split, by their numbers in it.

    `names` has the names of all inputs. An origin is the number of a name, and a line counted from 1: of a table the
    row, of Python's documentation the document.
    """

    def __init__(self, folder: Path, names: list[str], shards: list[Array]) -> None:
        self._folder, self.names, self._shards = folder, names, shards
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
        try:
            names = [str(entry["name"]) for entry in manifest.made_from["inputs"]]
        except (KeyError, TypeError):
            refuse_damaged(folder / MANIFEST_NAME, "it does not name the inputs")
        return cls(folder, names, arrays)

    def find(self, name: str, line: int) -> tuple[Array, Array]:
        """Return the documents that begin at a line of an input, and those that are the last to begin before it.

        Both are numbers, int64 [D]. `name` is the name of an input, or a path that ends with it, or its end; several
        inputs may have it, each of which has a document of the second kind at most.
        """
        sources = np.flatnonzero([_names(name, known) for known in self.names])
        exact, before = [np.zeros(0, np.int64)], {}
        for shard, first in zip(self._shards, self._first.tolist(), strict=False):
            for source in sources.tolist():
                here = np.flatnonzero((shard[:, 0] == source) & (shard[:, 1] <= line))
                if len(here):
                    before[source] = int(here[-1]) + first
                exact.append(here[shard[here, 1] == line] + first)
        return np.unique(np.concatenate(exact)), np.array(sorted(before.values()), np.int64)

    def knows(self, name: str) -> bool:
        """Return whether an input has this name, as `find` takes it."""
        return any(_names(name, known) for known in self.names)

    def of(self, documents: Array) -> list[str]:
        """Return "name:line" of each document in `documents`, int64 [D]. Raises `DataError` if a name is not there."""
        found = []
        for number in documents.tolist():
            shard = int(np.searchsorted(self._first, number, side="right")) - 1
            source, line = self._shards[shard][number - self._first[shard]].tolist()
            if not 0 <= source < len(self.names):
                refuse_damaged(self._folder, f"a document comes from input {source} of {len(self.names)}")
            found.append(f"{self.names[source]}:{line}")
        return found


def _names(given: str, known: str) -> bool:
    """Return whether a path that a user gives can be meant for the input with this name."""
    return given == known or given.endswith(f"/{known}") or known.endswith(f"/{given}")
