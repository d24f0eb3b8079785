"""Opens a prepared corpus: memory-mapped, checked against its manifest, several shards behaving as one.

Nothing is copied into memory: every rank of a machine shares the pages of the files, whatever their size.
"""

import time
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.lib.format import open_memmap

from lucid.backend import Array
from lucid.data.manifest import (
    MANIFEST_NAME,
    OFFSET_DTYPE,
    TOKENIZER_FOLDER,
    Manifest,
    Shard,
    frequencies_file,
    token_dtype,
)
from lucid.data.tokenizer import SpecialTokens
from lucid.errors import DataError

# Boundaries looked at at once.
_BLOCK = 1 << 24
# The share of the time that looking whether the files have changed may take.
_SHARE_FOR_WATCHING = 0.01


class Boundaries:
    """Rising offsets, from 0 to a total, stored in pieces that each count from their own start.

    `count` is the number of things between the boundaries, so there are `count + 1` boundaries.
    """

    def __init__(self, pieces: list[Array]) -> None:
        self._pieces = pieces
        self._first = np.cumsum([0, *(len(piece) - 1 for piece in pieces)])
        self._base = np.cumsum([0, *(int(piece[-1]) for piece in pieces)])
        self.count = int(self._first[-1])

    def at(self, numbers: Array) -> Array:
        """Return int64: the offsets of the boundaries with these numbers, 0 to `count`."""
        if len(self._pieces) == 1:
            return self._pieces[0][numbers]
        offsets = np.empty(numbers.shape, dtype=np.int64)
        piece_of = np.searchsorted(self._first[1:-1], numbers, side="right")
        for piece in np.unique(piece_of):
            here = piece_of == piece
            offsets[here] = self._pieces[piece][numbers[here] - self._first[piece]] + self._base[piece]
        return offsets

    def first_from(self, offsets: Array) -> Array:
        """Return int64: for each offset, 0 to the total, the number of the first boundary at or after it."""
        if len(self._pieces) == 1:
            return np.searchsorted(self._pieces[0], offsets)
        numbers = np.empty(offsets.shape, dtype=np.int64)
        piece_of = np.searchsorted(self._base[1:-1], offsets, side="left")
        for piece in np.unique(piece_of):
            here = piece_of == piece
            found = np.searchsorted(self._pieces[piece], offsets[here] - self._base[piece])
            numbers[here] = found + self._first[piece]
        return numbers

    def last_up_to(self, offsets: Array) -> Array:
        """Return int64: for each offset, the number of the last boundary at or before it."""
        return self.first_from(offsets + 1) - 1


class Corpus:
    """One split of a prepared corpus.

    `sentences` are the boundaries of sentences in tokens, `documents` those of documents in sentences.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest) -> None:
        self.folder, self.split, self._manifest = folder, split, manifest
        self.identity = manifest.identity
        self.tokenizer_hash = manifest.tokenizer_hash
        self.vocab_size = manifest.vocab_size
        self.special_tokens = SpecialTokens(**manifest.special_tokens)
        counts = manifest.splits[split]
        self.document_count, self.sentence_count = counts.documents, counts.sentences
        self.token_count = counts.tokens
        if not self.document_count:
            raise DataError(f"{folder} has no documents in its split {split!r}: prepare more text")
        self._versions = {path: _version(path) for path in map(folder.joinpath, (MANIFEST_NAME, *manifest.files))}
        self._next_look = 0.0
        shards = counts.shards
        dtype = token_dtype(self.vocab_size)
        self._tokens = [_mapped(folder / f"{shard.name}.tokens.npy", dtype, shard.tokens) for shard in shards]
        self.sentences = Boundaries([_boundaries(folder, shard, "sentences", shard.tokens) for shard in shards])
        self.documents = Boundaries([_boundaries(folder, shard, "documents", shard.sentences) for shard in shards])
        self._first_tokens = np.cumsum([0, *(shard.tokens for shard in shards)])

    @classmethod
    def open(cls, folder: Path, split: str = "train") -> "Corpus":
        """Open the split `train` or `held_out` of the corpus in `folder`.

        Raises `DataError` if there is no such corpus or split, or if a file is missing or of the wrong size.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        if split not in manifest.splits:
            raise DataError(f"{folder} has no split {split!r}, only {', '.join(manifest.splits)}: see --held-out")
        manifest.check_files(folder, checksums=False)
        return cls(folder, split, manifest)

    def verify(self) -> None:
        """Read every file of the corpus and compare its checksum; `DataError` names the first that was altered."""
        self._manifest.check_files(self.folder, checksums=True)

    @property
    def tokenizer_files(self) -> list[Path]:
        """The files of its tokenizer."""
        return sorted(path for path in self._versions if path.parent == self.folder / TOKENIZER_FOLDER)

    def check_unchanged(self) -> None:
        """Raise `DataError`, naming the file, if one was written to, replaced or removed since the corpus was opened.

        Call it before each reading: it looks at the files' sizes and times, and only as often as that costs next to
        nothing. A file that is cut short between this look and the reading still ends the process (SIGBUS).
        """
        started = time.monotonic()
        if started < self._next_look:
            return
        for path, version in self._versions.items():
            if (now := _version(path)) != version:
                what = "was removed" if now is None else "was written to"
                raise DataError(
                    f"{path} {what} while it was being read: the corpus has changed. Put it back as it was and start "
                    "again: a run goes on from its last checkpoint"
                )
        finished = time.monotonic()
        self._next_look = finished + (finished - started) / _SHARE_FOR_WATCHING

    def tokens(self, positions: Array) -> Array:
        """Return int32, shaped like `positions`: the tokens at these offsets, 0 to `token_count - 1`."""
        found = self._tokens_at(positions)
        if found.size and found.max() >= self.vocab_size:
            self._refuse_token(int(found.max()))
        return found

    def _tokens_at(self, positions: Array) -> Array:
        if len(self._tokens) == 1:
            return self._tokens[0][positions].astype(np.int32)
        found = np.empty(positions.shape, dtype=np.int32)
        shard_of = np.searchsorted(self._first_tokens[1:-1], positions, side="right")
        for shard in np.unique(shard_of):
            here = shard_of == shard
            found[here] = self._tokens[shard][positions[here] - self._first_tokens[shard]]
        return found

    def token_frequencies(self) -> Array:
        """Return int64 [V]: how often each token occurs in the split, as counted when it was prepared."""
        path = self.folder / frequencies_file(self.split)
        counts = _mapped(path, np.dtype(np.int64), self.vocab_size)
        if counts.min() < 0 or counts.max() > self.token_count or counts.sum() != self.token_count:
            _refuse(path, f"its counts do not add up to {self.token_count}")
        return counts.copy()

    def _refuse_token(self, token: int) -> NoReturn:
        _refuse(self.folder, f"it holds the token {token}, but its vocabulary has {self.vocab_size}")


def _mapped(path: Path, dtype: np.dtype, length: int) -> Array:
    try:
        array = open_memmap(path, mode="r")
    except Exception as error:  # NumPy evaluates the header, and does not foresee all that may stand there
        _refuse(path, str(error) or type(error).__name__)
    if array.shape != (length,) or array.dtype != dtype:
        _refuse(path, f"it holds {array.dtype}{list(array.shape)} instead of {dtype}[{length}]")
    # A plain view of the mapping: indexing a `memmap` itself is slower.
    return np.asarray(array)


def _boundaries(folder: Path, shard: Shard, part: str, total: int) -> Array:
    """Return int64 [N + 1]: offsets that rise from 0 to `total`, which is checked, as all that is read follows them."""
    count = shard.sentences if part == "sentences" else shard.documents
    path = folder / f"{shard.name}.{part}.npy"
    offsets = _mapped(path, OFFSET_DTYPE, count + 1)
    blocks = (offsets[start : start + _BLOCK + 1] for start in range(0, count, _BLOCK))
    if offsets[0] != 0 or offsets[-1] != total or not all((block[1:] > block[:-1]).all() for block in blocks):
        _refuse(path, f"its offsets do not rise from 0 to {total}")
    return offsets


def _version(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is written to: size and time. None if it is not there.

    The inode is left out: some network file systems give a file another one now and then.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _refuse(path: Path, problem: str) -> NoReturn:
    raise DataError(f"{path} is damaged ({problem}): copy the corpus again, or prepare it again with --overwrite")
