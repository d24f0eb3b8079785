"""Finds the lines that stand in many documents, such as notices, menus and footers.

Each portion's documents are hashed first, so that copies of a document count as one. Then each portion counts in how
many of its documents each line stands, sorted by the hashes of the lines. Finally the counts of all portions are added
up, range by range of hashes. The result is exact, and memory is bounded: nothing but files grows with the text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from lucid.backend import Array
from lucid.errors import DataError
from lucid.files import written_aside
from lucid.preparation.inputs.omissions import Dropped
from lucid.preparation.line_filter import can_be_left_out, digest, load_mapped, stripped_lines
from lucid.preparation.parts import Portion, TextSettings
from lucid.preparation.processes import Task
from lucid.preparation.selection import HASH_RANGE, mark_copies

# Counts that are added up at once, in each process; sorting them takes about 70 MB.
_COUNTS_AT_ONCE = 1 << 19
# Within the folder of the work: which documents have the text of one before them.
_COPIES = "copies.npy"

# Does the work of a stage: its name, the function, and its tasks.
DoStage = Callable[[str, Callable[[Any, Path], None], Sequence[Task[Any]]], None]


def find_repeated_lines(
    folder: Path, portions: Sequence[Portion], settings: TextSettings, most: int, do: DoStage
) -> Path:
    """Return a file in `folder` with the hashes of the lines in more than `most` documents: uint64 [2, N], sorted."""
    found = folder / "repeated-lines.npy"
    if not found.exists():
        _join(_ranges(folder, portions, settings, most, do), found)
    # They take much space, and are of no more use.
    for pattern in ("texts-*.npy", _COPIES, "lines-*.npy", "repeated-[0-9]*.npy"):
        for path in folder.glob(pattern):
            path.unlink()
    return found


def _ranges(folder: Path, portions: Sequence[Portion], settings: TextSettings, most: int, do: DoStage) -> list[Path]:
    """Return the files of `RangeOfCounts`, in order."""

    def tasks(name: str, sizes: Sequence[tuple[Any, int]]) -> list[Task[Any]]:
        return [Task(each, folder / f"{name}-{number:06d}.npy", size) for number, (each, size) in enumerate(sizes)]

    hashed = tasks("texts", [(portion, portion.size) for portion in portions])
    do("hashing documents", TextHasher(settings), hashed)
    firsts = [0]
    for task in hashed:
        firsts.append(firsts[-1] + len(load_mapped(task.output)))
    copies = folder / _COPIES
    if not copies.exists():
        mark_copies(lambda part: _all_of(load_mapped(hashed[part].output)), firsts, copies)
    counted = tasks(
        "lines", [((portion, first), portion.size) for portion, first in zip(portions, firsts, strict=False)]
    )
    do("counting lines", LineCounter(settings, copies), counted)
    parts = [task.output for task in counted]
    ranges = sum(load_mapped(path).shape[1] for path in parts) // _COUNTS_AT_ONCE + 1
    bounds = [number * HASH_RANGE // ranges for number in range(ranges + 1)]
    summed = tasks("repeated", [(limits, 1) for limits in pairwise(bounds)])
    do("finding repeated lines", RangeOfCounts(parts, most), summed)
    return [task.output for task in summed]


def _all_of(hashes: Array) -> tuple[Array, Array]:
    return hashes, np.ones(len(hashes), bool)


def _join(paths: Sequence[Path], found: Path) -> None:
    """Write the hashes of all files, uint64 [2, N] each, side by side, holding one at a time."""
    total = sum(load_mapped(path).shape[1] for path in paths)
    with written_aside(found, DataError) as file:
        npy.write_array_header_1_0(file, {"descr": "<u8", "fortran_order": False, "shape": (2, total)})
        for row in range(2):
            for path in paths:
                file.write(load_mapped(path)[row].tobytes())


def _save(path: Path, array: Array) -> None:
    with written_aside(path, DataError) as file:
        np.save(file, np.ascontiguousarray(array, "<u8"))


class TextHasher:
    """Writes 128 bits of the hash of each document of a portion: uint64 [D, 2]."""

    def __init__(self, settings: TextSettings) -> None:
        self._read = settings.reader()

    def __call__(self, portion: Portion, path: Path) -> None:
        """Write the hashes of `portion` as the file `path`."""
        hashes = b"".join(document.digest()[:16] for document in self._read(portion, Dropped()))
        _save(path, np.frombuffer(hashes, ">u8").reshape(-1, 2))


class LineCounter:
    """Writes the hashes of the lines of a portion, sorted, and in how many documents each stands: uint64 [3, L].

    Documents that are marked in the file `copies`, bool [D], do not count.
    """

    def __init__(self, settings: TextSettings, copies: Path) -> None:
        self._read, self._copies = settings.reader(), copies

    def __call__(self, numbered: tuple[Portion, int], path: Path) -> None:
        """Write the counts of a portion, given with the number of its first document, as the file `path`."""
        portion, first = numbered
        is_copy = load_mapped(self._copies)
        digests = bytearray()
        for number, document in enumerate(self._read(portion, Dropped()), start=first):
            if number >= len(is_copy) or not is_copy[number]:  # a file may not have been readable before
                digests += b"".join(map(digest, {line for line in stripped_lines(document) if can_be_left_out(line)}))
        hashes = np.frombuffer(digests, ">u8").reshape(-1, 2).T.astype(np.uint64)
        _save(path, _summed(hashes, np.ones(hashes.shape[1], np.uint64)))


def _summed(hashes: Array, documents: Array) -> Array:
    """Return the different hashes, uint64 [2, N], in order, and the sum of the `documents` of each: uint64 [3, N]."""
    order = np.lexsort(hashes[::-1])
    hashes, documents = hashes[:, order], documents[order]
    starts = np.flatnonzero(np.r_[True, (hashes[:, 1:] != hashes[:, :-1]).any(axis=0)][: hashes.shape[1]])
    sums = np.add.reduceat(documents, starts) if len(starts) else documents
    return np.stack([*hashes[:, starts], sums])


@dataclass(frozen=True)
class RangeOfCounts:
    """Writes the hashes of a range that are counted more than `most` times in all files together: uint64 [2, N]."""

    parts: Sequence[Path]
    most: int

    def __call__(self, limits: tuple[int, int], path: Path) -> None:
        """Write the hashes whose first 64 bits are from the first to below the second of `limits` as `path`."""
        joined = np.concatenate(
            [np.zeros((3, 0), np.uint64), *(_range_of(part, limits) for part in self.parts)], axis=1
        )
        summed = _summed(joined[:2], joined[2])
        _save(path, summed[:2, summed[2] > self.most])


def _range_of(part: Path, limits: tuple[int, int]) -> Array:
    """Return a copy of the counts in a range of hashes: a view would keep the file open, one of thousands."""
    counted = load_mapped(part)
    start, stop = (_place(counted[0], limit) for limit in limits)
    return np.array(counted[:, start:stop])


def _place(sorted_hashes: Array, limit: int) -> int:
    """Return the place of the first hash that is at least `limit`."""
    return len(sorted_hashes) if limit == HASH_RANGE else int(np.searchsorted(sorted_hashes, np.uint64(limit)))
