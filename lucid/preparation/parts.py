"""Encodes portions of the text, each into a part: one file that is whole or not there, so that work done is kept.

A part holds the documents of its portion in order, whichever split they will be in: the ids of all sentences in a row,
how many each sentence has, how many sentences and tokens each document has, and 128 bits of the hash of its text.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lucid.backend import Array
from lucid.data.manifest import token_dtype
from lucid.data.tokenizer import load_tokenizer
from lucid.errors import DataError
from lucid.files import written_aside
from lucid.preparation.documents import Document, Piece, Reader, refuse
from lucid.preparation.encoder import TextEncoder
from lucid.preparation.sentences import split_sentences
from lucid.preparation.sources import Contents, Source

TOO_SHORT = "fewer than two tokens"
# Sentences longer than this, in tokens, are tables and listings: they are cut.
_LONGEST_SENTENCE = 128
# Characters of text encoded at once.
_BLOCK = 1 << 20
# Places that are listed of what one portion leaves out; the others are only counted.
_PLACES = 1000

_DTYPES: dict[str, np.dtype] = {
    "sentence_lengths": np.dtype(np.uint8),
    "document_sentences": np.dtype(np.int64),
    "document_tokens": np.dtype(np.int64),
    "hashes": np.dtype(np.uint64),
}


@dataclass(frozen=True)
class Portion:
    """Pieces that are read and kept together."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes of content."""
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True)
class TextSettings:
    """How text is read; see `prepare`."""

    text_field: str
    whole_files: bool
    language: str
    strict: bool

    def reader(self, dropped: "Dropped") -> Reader:
        """Return what reads documents so; what it leaves out is noted in `dropped`, or refused."""
        return Reader(self.text_field, self.whole_files, refuse if self.strict else dropped.note)


class Dropped:
    """What was left out: how much by reason, and a line for each of the first places."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.lines: list[str] = []

    @property
    def first(self) -> str:
        """The first place, and why; "" if nothing was left out."""
        return ": ".join(self.lines[0].split("\t")) if self.lines else ""

    def note(self, source: Source, line: int, reason: str, detail: str) -> None:
        """Note one: the `Drop` of readers."""
        self.counts[reason] += 1
        if len(self.lines) < _PLACES:
            self.lines.append(f"{source.name}:{line}\t{reason}" + f"\t{detail}" * bool(detail))


def text_hash(text: str) -> bytes:
    """Return the SHA-256 of a text: its first 64 bits decide the split, its first 128 whether two texts are equal."""
    return hashlib.sha256(text.encode()).digest()


class PartMaker:
    """Called with a portion, it writes the part of it into `folder`.

    It remembers words in about `word_bytes` bytes.
    """

    def __init__(self, folder: Path, tokenizer_folder: Path, settings: TextSettings, word_bytes: int) -> None:
        self._folder, self._tokenizer_folder, self._settings = folder, tokenizer_folder, settings
        self._word_bytes = word_bytes

    def path_of(self, task: Portion) -> Path:
        """Return where the part is."""
        return _part_path(self._folder, task.number)

    def load(self) -> None:
        """Load the tokenizer."""
        assert self._encoder, self._token_dtype

    def __call__(self, task: Portion) -> None:
        dropped = Dropped()
        reader = self._settings.reader(dropped)
        documents = (document for piece in task.pieces for document in reader.documents(piece, self._contents))
        blocks = [self._encoded(block, dropped) for block in _blocks(documents)]
        dtypes = {**_DTYPES, "tokens": self._token_dtype}
        arrays: dict[str, Any] = {
            name: np.concatenate([np.zeros(0, dtype), *(block[name] for block in blocks)]).astype(dtype)
            for name, dtype in dtypes.items()
        }
        notes = {"reasons": list(dropped.counts), "counts": list(dropped.counts.values()), "lines": dropped.lines}
        arrays |= {name: np.array(values) for name, values in notes.items() if values}
        with written_aside(self.path_of(task), DataError) as file:
            np.savez(file, **arrays)

    @cached_property
    def _contents(self) -> Contents:
        return Contents()

    @cached_property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(load_tokenizer(self._tokenizer_folder), self._word_bytes)

    @cached_property
    def _token_dtype(self) -> np.dtype:
        return token_dtype(load_tokenizer(self._tokenizer_folder).get_vocab_size())

    def _encoded(self, documents: list[Document], dropped: Dropped) -> dict[str, Array]:
        sentences = [split_sentences(document.text, self._settings.language) for document in documents]
        ids, lengths = self._encoder.encode([sentence for document in sentences for sentence in document])
        # Each sentence becomes as many as it has runs of `_LONGEST_SENTENCE` tokens: none, if it has no tokens.
        runs = -(-lengths // _LONGEST_SENTENCE)
        run_lengths = np.full(runs.sum(), _LONGEST_SENTENCE)
        some = runs > 0
        run_lengths[np.cumsum(runs)[some] - 1] = (lengths - (runs - 1) * _LONGEST_SENTENCE)[some]
        ends = np.cumsum([0, *map(len, sentences)])
        document_tokens = np.diff(_with_zero(np.cumsum(lengths))[ends])
        for place in np.flatnonzero(document_tokens < 2).tolist():
            dropped.note(documents[place].source, documents[place].line, TOO_SHORT, "")
        hashes = b"".join(text_hash(document.text)[:16] for document in documents)
        return {
            "tokens": ids.astype(self._token_dtype),
            "sentence_lengths": run_lengths.astype(np.uint8),
            "document_sentences": np.diff(_with_zero(np.cumsum(runs))[ends]),
            "document_tokens": document_tokens,
            "hashes": np.frombuffer(hashes, ">u8"),
        }


def _with_zero(sums: Array) -> Array:
    return np.concatenate([[0], sums])


def _blocks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Gather documents until there is enough text to be worth a round of array operations."""
    block: list[Document] = []
    size = 0
    for document in documents:
        block.append(document)
        size += len(document.text)
        if size >= _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.npz"


def load_part(folder: Path, number: int, *names: str) -> list[Array]:
    """Return arrays of a part by their names; `hashes` is uint64 [D, 2]. `DataError` if it is damaged."""
    path = _part_path(folder, number)
    try:
        with np.load(path) as part:
            arrays = [part[name] for name in names]
    except Exception as error:  # zip files can be damaged in many ways
        raise DataError(f"{path} cannot be read ({error}): remove it and start again, to have it made anew") from error
    return [array.reshape(-1, 2) if name == "hashes" else array for name, array in zip(names, arrays, strict=True)]


def load_dropped(folder: Path, number: int) -> Dropped:
    """Return what the portion of a part left out."""
    dropped = Dropped()
    with np.load(_part_path(folder, number)) as part:
        if "reasons" in part:
            dropped.counts.update(dict(zip(part["reasons"].tolist(), part["counts"].tolist(), strict=True)))
            dropped.lines = part["lines"].tolist()
    return dropped
