"""Opens a prepared corpus: memory-mapped, checked against its manifest, several shards behaving as one.

Nothing is copied into memory: every rank of a machine shares the pages of the files, whatever their size.
"""

from pathlib import Path
from typing import NoReturn

import numpy as np

from lucid.backend import Array
from lucid.data.manifest import Manifest, Shard
from lucid.data.tokenizer import SpecialTokens
from lucid.data.writer import OFFSET_DTYPE, token_dtype
from lucid.errors import DataError

# Tokens counted at once.
_BLOCK = 1 << 24


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
        shards = counts.shards
        dtype = token_dtype(self.vocab_size)
        self._tokens = [_mapped(folder, shard, "tokens", dtype, shard.tokens) for shard in shards]
        self.sentences = Boundaries(
            [_mapped(folder, shard, "sentences", OFFSET_DTYPE, shard.sentences + 1) for shard in shards]
        )
        self.documents = Boundaries(
            [_mapped(folder, shard, "documents", OFFSET_DTYPE, shard.documents + 1) for shard in shards]
        )
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

    def tokens(self, positions: Array) -> Array:
        """Return int32, shaped like `positions`: the tokens at these offsets, 0 to `token_count - 1`."""
        if len(self._tokens) == 1:
            return self._tokens[0][positions].astype(np.int32)
        found = np.empty(positions.shape, dtype=np.int32)
        shard_of = np.searchsorted(self._first_tokens[1:-1], positions, side="right")
        for shard in np.unique(shard_of):
            here = shard_of == shard
            found[here] = self._tokens[shard][positions[here] - self._first_tokens[shard]]
        return found

    def token_frequencies(self) -> Array:
        """Return int64 [V]: how often each token occurs in the split. Reads all of it."""
        counts = np.zeros(self.vocab_size, dtype=np.int64)
        for tokens in self._tokens:
            for start in range(0, len(tokens), _BLOCK):
                counts += np.bincount(tokens[start : start + _BLOCK], minlength=self.vocab_size)
        return counts


def _mapped(folder: Path, shard: Shard, part: str, dtype: np.dtype, length: int) -> Array:
    path = folder / f"{shard.name}.{part}.npy"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        _refuse(path, str(error))
    if array.shape != (length,) or array.dtype != dtype:
        _refuse(path, f"it holds {array.dtype}{list(array.shape)} instead of {dtype}[{length}]")
    # A plain view of the mapping: indexing a `memmap` itself is slower.
    return np.asarray(array)


def _refuse(path: Path, problem: str) -> NoReturn:
    raise DataError(f"{path} is damaged ({problem}): copy the corpus again, or prepare it again with --overwrite")
