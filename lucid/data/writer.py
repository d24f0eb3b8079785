"""Writes the shards of a split as plain `.npy` files, streaming: no more than a document is held at a time.

A shard is three arrays: the tokens of all its sentences in a row; for each sentence the offset of its first token, and
the end; for each document the offset of its first sentence, and the end. Offsets count from the shard's own start.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from lucid.data.manifest import Shard, Split
from lucid.errors import DataError
from lucid.files import written_aside

OFFSET_DTYPE = np.dtype(np.int64)


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest of uint16 and uint32 that holds every id."""
    return np.dtype(np.uint16 if vocab_size < 1 << 16 else np.uint32)


class _GrowingArray:
    """A one-dimensional `.npy` file that is appended to; its header is written again once the length is known."""

    def __init__(self, file: BinaryIO, dtype: np.dtype) -> None:
        self._file, self._dtype, self.length = file, dtype, 0
        self._write_header()

    def append(self, values: list[int]) -> None:
        self._file.write(np.asarray(values, dtype=self._dtype).tobytes())
        self.length += len(values)

    def finish(self) -> None:
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        # NumPy pads the header so that it stays as long as it is whatever the length of the first axis.
        description = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.length,)}
        npy.write_array_header_1_0(self._file, description)


class _ShardWriter:
    """The three growing files of one shard."""

    def __init__(self, open_file: Callable[[str], BinaryIO], tokens: np.dtype) -> None:
        self.tokens = _GrowingArray(open_file("tokens"), tokens)
        self.sentences = _GrowingArray(open_file("sentences"), OFFSET_DTYPE)
        self.documents = _GrowingArray(open_file("documents"), OFFSET_DTYPE)

    def add(self, document: list[list[int]]) -> None:
        self.documents.append([self.sentences.length])
        ends = np.cumsum([len(sentence) for sentence in document])
        self.sentences.append([self.tokens.length, *(self.tokens.length + ends[:-1]).tolist()])
        self.tokens.append([token for sentence in document for token in sentence])

    def finish(self, name: str) -> Shard:
        shard = Shard(name, self.documents.length, self.sentences.length, self.tokens.length)
        self.documents.append([shard.sentences])
        self.sentences.append([shard.tokens])
        for array in (self.tokens, self.sentences, self.documents):
            array.finish()
        return shard


class SplitWriter(AbstractContextManager["SplitWriter"]):
    """Takes the documents of one split in order; `finish` closes the last shard and says what was written.

    A shard is closed by the document that takes it to `tokens_per_shard` tokens.
    An exception in the block removes the shard that was being written.
    """

    def __init__(self, folder: Path, name: str, dtype: np.dtype, tokens_per_shard: int) -> None:
        self._folder, self._name, self._dtype, self._tokens_per_shard = folder, name, dtype, tokens_per_shard
        self._shards: list[Shard] = []
        self._dropped: Counter[str] = Counter()
        self._files = ExitStack()
        self._current: _ShardWriter | None = None

    def add(self, document: list[list[int]]) -> None:
        """Append one document: the ids of each of its sentences, none of them empty."""
        if self._current is None:
            self._current = _ShardWriter(self._open, self._dtype)
        self._current.add(document)
        if self._current.tokens.length >= self._tokens_per_shard:
            self._close_shard(self._current)

    def drop(self, reason: str) -> None:
        """Count a document that is left out."""
        self._dropped[reason] += 1

    def finish(self) -> Split:
        """Close the last shard and return the counts of the split."""
        if self._current is not None:
            self._close_shard(self._current)
        return Split(
            documents=sum(shard.documents for shard in self._shards),
            sentences=sum(shard.sentences for shard in self._shards),
            tokens=sum(shard.tokens for shard in self._shards),
            dropped=dict(sorted(self._dropped.items())),
            shards=tuple(self._shards),
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)

    @property
    def _shard_name(self) -> str:
        return f"{self._name}-{len(self._shards):05d}"

    def _open(self, part: str) -> BinaryIO:
        return self._files.enter_context(written_aside(self._folder / f"{self._shard_name}.{part}.npy", DataError))

    def _close_shard(self, current: _ShardWriter) -> None:
        shard = current.finish(self._shard_name)
        self._files.close()
        self._shards.append(shard)
        self._current = None
