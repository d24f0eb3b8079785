"""Writes the shards of a split as plain `.npy` files, streaming: no more than a part is held at a time.

A shard is three arrays: the tokens of all its sentences in a row; for each sentence the offset of its first token, and
the end; for each document the offset of its first sentence, and the end. Offsets count from the shard's own start.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from lucid.backend import Array
from lucid.data.manifest import OFFSET_DTYPE, SHARD_PARTS, Shard, token_dtype
from lucid.errors import DataError
from lucid.files import written_aside


class Documents(NamedTuple):
    """Some documents: all their tokens, the tokens of each sentence, and the sentences of each document."""

    tokens: Array
    sentence_lengths: Array
    document_sentences: Array

    def only(self, taken: Array) -> "Documents":
        """Return those documents for which `taken`, bool [D], is true."""
        if taken.all():
            return self
        sentences = np.repeat(taken, self.document_sentences)
        tokens = np.repeat(sentences, self.sentence_lengths)
        return Documents(self.tokens[tokens], self.sentence_lengths[sentences], self.document_sentences[taken])


class _GrowingArray:
    """A one-dimensional `.npy` file that is appended to; its header is written again once the length is known."""

    def __init__(self, file: BinaryIO, dtype: np.dtype) -> None:
        self._file, self._dtype, self.length = file, dtype, 0
        self._write_header()

    def append(self, values: Array) -> None:
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self.length += len(values)

    def finish(self) -> None:
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        # NumPy pads the header so that it stays as long as it is whatever the length of the first axis.
        description = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.length,)}
        npy.write_array_header_1_0(self._file, description)


def write_shard(folder: Path, name: str, vocab_size: int, parts: Iterable[Documents]) -> tuple[Shard, Array]:
    """Write the documents of `parts` as the shard `name`; return its counts, and int64 [V] how often each token occurs.

    Raises `DataError` if it cannot be written; then none of its files is there.
    """
    dtypes = dict(zip(SHARD_PARTS, (token_dtype(vocab_size), OFFSET_DTYPE, OFFSET_DTYPE), strict=True))
    frequencies = np.zeros(vocab_size, np.int64)
    with ExitStack() as files:
        tokens, sentences, documents = (
            _GrowingArray(files.enter_context(written_aside(folder / f"{name}.{part}.npy", DataError)), dtype)
            for part, dtype in dtypes.items()
        )
        for part in parts:
            documents.append(sentences.length + _starts(part.document_sentences))
            sentences.append(tokens.length + _starts(part.sentence_lengths))
            tokens.append(part.tokens)
            frequencies += np.bincount(part.tokens, minlength=vocab_size)
        shard = Shard(name, documents.length, sentences.length, tokens.length)
        documents.append(np.array([shard.sentences]))
        sentences.append(np.array([shard.tokens]))
        for array in (tokens, sentences, documents):
            array.finish()
    return shard, frequencies


def _starts(lengths: Array) -> Array:
    """Return int64: where each of things with these lengths starts, if they lie side by side."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return ends - lengths
