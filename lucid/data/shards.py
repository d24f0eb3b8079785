"""Opens a prepared corpus: maps its files into memory, checks them against the manifest, joins its shards into one.

The ranks of a machine share the pages of the mapped files, so a corpus of any size costs no memory of their own.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

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
from lucid.files import check_is_file, reason_of

# The number of boundaries checked at once.
_BLOCK = 1 << 24
# The fraction of the time that checks for changed files may take.
_FRACTION_FOR_CHECKS = 0.01


def _gathered(piece_of: Array, look_up: Callable[[int, Array], Array]) -> Array:
    """Return int64, shaped like `piece_of`: for each piece in it, `look_up(piece, mask of its elements)`."""
    found = np.empty(piece_of.shape, dtype=np.int64)
    for piece in np.unique(piece_of).tolist():
        here = piece_of == piece
        found[here] = look_up(piece, here)
    return found


class Boundaries:
    """Rising offsets from 0 to a total, stored in pieces that each count from their own start.

    There are `count + 1` boundaries: the starts of `count` items, and the end of the last.
    """

    def __init__(self, pieces: list[Array]) -> None:
        self._pieces = pieces
        self._first = np.cumsum([0, *(len(piece) - 1 for piece in pieces)])
        self._base = np.cumsum([0, *(int(piece[-1]) for piece in pieces)])
        self.count = int(self._first[-1])

    def at(self, numbers: Array) -> Array:
        """Return the offsets (int64) of the boundaries with these numbers, from 0 to `count`."""
        pieces, first, base = self._pieces, self._first, self._base
        if len(pieces) == 1:
            return pieces[0][numbers]
        piece_of = np.searchsorted(first[1:-1], numbers, side="right")
        return _gathered(piece_of, lambda piece, here: pieces[piece][numbers[here] - first[piece]] + base[piece])

    def first_from(self, offsets: Array) -> Array:
        """Return, for each offset from 0 to the total, the number (int64) of the first boundary at or after it."""
        pieces, first, base = self._pieces, self._first, self._base
        if len(pieces) == 1:
            return np.searchsorted(pieces[0], offsets)
        piece_of = np.searchsorted(base[1:-1], offsets, side="left")
        return _gathered(
            piece_of, lambda piece, here: np.searchsorted(pieces[piece], offsets[here] - base[piece]) + first[piece]
        )

    def last_up_to(self, offsets: Array) -> Array:
        """Return, for each offset, the number (int64) of the last boundary at or before it."""
        return self.first_from(offsets + 1) - 1


class Corpus:
    """One split of a prepared corpus.

    `sentences` holds the boundaries of sentences, in tokens; `documents` those of documents, in sentences.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest) -> None:
        self.folder, self.split, self._manifest = folder, split, manifest
        self.identity = manifest.identity
        self.tokenizer_hash = manifest.tokenizer_hash
        self.vocab_size = manifest.vocab_size
        self.special_tokens = SpecialTokens(**manifest.special_tokens)
        counts = self.contents = manifest.splits[split]
        self.document_count, self.sentence_count = counts.documents, counts.sentences
        self.token_count = counts.tokens
        if not self.document_count:
            raise DataError(f"{folder} has no documents in its split {split!r}: prepare more text")
        self._versions = {path: _version(path) for path in map(folder.joinpath, (MANIFEST_NAME, *manifest.files))}
        self._next_look = 0.0
        shards = counts.shards
        dtype = token_dtype(self.vocab_size)
        self._tokens = [mapped(folder / f"{shard.name}.tokens.npy", dtype, shard.tokens) for shard in shards]
        self.sentences = Boundaries([_boundaries(folder, shard, "sentences", shard.tokens) for shard in shards])
        self.documents = Boundaries([_boundaries(folder, shard, "documents", shard.sentences) for shard in shards])
        self._first_tokens = np.cumsum([0, *(shard.tokens for shard in shards)])

    @classmethod
    def open(cls, folder: str | Path, split: str = "train") -> "Corpus":
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
        """Compare the checksum of every file. Raises a `DataError` that names the first altered file."""
        self._manifest.check_files(self.folder, checksums=True)

    def documents_in(self, split: str) -> int:
        """Return how many documents a split of the whole corpus has, 0 if there is no such split."""
        return self._manifest.splits[split].documents if split in self._manifest.splits else 0

    @property
    def made_from(self) -> Mapping[str, Any]:
        """The inputs and settings with which it was prepared; corpora of earlier versions have fewer."""
        return self._manifest.made_from

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of the corpus's tokenizer."""
        return self.folder / TOKENIZER_FOLDER

    def check_unchanged(self) -> None:
        """Raise a `DataError` that names the file if one was written, replaced or removed since the corpus was opened.

        Call it before each reading. It compares the files' sizes and times, and does so just often enough to cost next
        to nothing. A file that is truncated between this check and the reading still ends the process (SIGBUS).
        """
        started = time.monotonic()
        if started < self._next_look:
            return
        for path, version in self._versions.items():
            if (now := _version(path)) != version:
                what = "was removed" if now is None else "was written to"
                raise DataError(
                    f"{path} {what} while it was being read: the corpus has changed. Put it back as it was and start "
                    "again: a run resumes from its last checkpoint"
                )
        finished = time.monotonic()
        self._next_look = finished + (finished - started) / _FRACTION_FOR_CHECKS

    def tokens(self, positions: Array) -> Array:
        """Return the tokens (int32) at these offsets, which are from 0 to `token_count - 1`."""
        found = self._tokens_at(positions)
        if found.size and found.max() >= self.vocab_size:
            self._refuse_token(int(found.max()))
        return found

    def _tokens_at(self, positions: Array) -> Array:
        shards, first = self._tokens, self._first_tokens
        if len(shards) == 1:
            return shards[0][positions].astype(np.int32)
        shard_of = np.searchsorted(first[1:-1], positions, side="right")
        found = _gathered(shard_of, lambda shard, here: shards[shard][positions[here] - first[shard]])
        return found.astype(np.int32)

    def tokens_in(self, document: int) -> int:
        """Return the number of tokens in a document."""
        start, end = self.sentences.at(self.documents.at(np.array([document, document + 1]))).tolist()
        return end - start

    def find(self, tokens: Array) -> Array:
        """Return the offsets (int64, rising) at which these tokens (integers, one or more) occur within a document."""
        rarest = int(np.argmin(self.token_frequencies()[tokens]))
        found = [np.zeros(0, np.int64)]
        for shard, first in zip(self._tokens, self._first_tokens.tolist(), strict=False):
            for start in range(0, len(shard), _BLOCK):
                at = np.flatnonzero(shard[start : start + _BLOCK] == tokens[rarest]) + (start - rarest)
                at = at[(at >= 0) & (at <= len(shard) - len(tokens))]
                for number, token in enumerate(tokens.tolist()):
                    at = at[shard[at + number] == token]
                found.append(at + first)
        offsets = np.concatenate(found)
        return offsets[self.document_of(offsets) == self.document_of(offsets + len(tokens) - 1)]

    def document_of(self, positions: Array) -> Array:
        """Return the number (int64) of the document that each of these tokens is in."""
        return self.documents.last_up_to(self.sentences.last_up_to(positions))

    def token_frequencies(self) -> Array:
        """Return int64 [V]: how often each token occurs in the split, as `lucid prepare` counted."""
        path = self.folder / frequencies_file(self.split)
        counts = mapped(path, np.dtype(np.int64), self.vocab_size)
        if counts.min() < 0 or counts.max() > self.token_count or counts.sum() != self.token_count:
            refuse_damaged(path, f"its counts do not add up to {self.token_count}")
        return counts.copy()

    def _refuse_token(self, token: int) -> NoReturn:
        refuse_damaged(self.folder, f"it holds the token {token}, but its vocabulary has {self.vocab_size}")


def mapped(path: Path, dtype: np.dtype, *shape: int) -> Array:
    """Map an array of this dtype and shape into memory. Raises `DataError` if the file holds another, or none."""
    try:
        check_is_file(path)
        array = open_memmap(path, mode="r")
    except Exception as error:  # NumPy evaluates the header, and may raise anything if it is damaged
        refuse_damaged(path, reason_of(error))
    if array.shape != shape or array.dtype != dtype:
        refuse_damaged(path, f"it holds {array.dtype}{list(array.shape)} instead of {dtype}{list(shape)}")
    # A plain view of the mapping, because indexing a `memmap` is slower.
    return np.asarray(array)


def _boundaries(folder: Path, shard: Shard, part: str, total: int) -> Array:
    """Return int64 [N + 1]: offsets from 0 to `total`. They are checked to rise, because all reading relies on it."""
    count = shard.sentences if part == "sentences" else shard.documents
    path = folder / f"{shard.name}.{part}.npy"
    offsets = mapped(path, OFFSET_DTYPE, count + 1)
    blocks = (offsets[start : start + _BLOCK + 1] for start in range(0, count, _BLOCK))
    if offsets[0] != 0 or offsets[-1] != total or not all((block[1:] > block[:-1]).all() for block in blocks):
        refuse_damaged(path, f"its offsets do not rise from 0 to {total}")
    return offsets


def _version(path: Path) -> tuple[int, int] | None:
    """Return the size and the time of a file, one of which changes when it is written to; None if it does not exist.

    The inode is left out, because some network file systems change the inode of a file now and then.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def refuse_damaged(path: Path, problem: str) -> NoReturn:
    """Raise the `DataError` about a damaged file of a corpus."""
    raise DataError(f"{path} is damaged ({problem}): copy the corpus again, or prepare it again with --overwrite")
