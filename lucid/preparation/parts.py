"""Encodes portions of the text, each into a part: one file that is whole or not there, so that finished work is kept.

A part holds the documents of its portion in order, whichever split they go into: the ids of all sentences in a row, the
length of each sentence; for each document the numbers of its sentences and tokens, 128 bits of the hash of its text,
and its origin: the numbers of its source and its line.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lucid.backend import Array
from lucid.data.manifest import ORIGIN_DTYPE, token_dtype
from lucid.data.tokenizer import special_tokens
from lucid.errors import DataError
from lucid.files import written_aside
from lucid.preparation.encoder import TextEncoder
from lucid.preparation.inputs.documents import Document, Reader, blocks_of
from lucid.preparation.inputs.omissions import Drop, Dropped, refuse
from lucid.preparation.inputs.pieces import Piece
from lucid.preparation.line_filter import LineFilter
from lucid.preparation.sentences import split_sentences

TOO_SHORT = "fewer than two tokens"
# Tokens of a sentence: longer ones are tables and listings, and are cut.
_LONGEST_SENTENCE = 128
# Characters of text that are encoded at once. A longer document is encoded in several rounds.
_CHARACTERS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Portion:
    """Pieces that one task reads, and whose documents one part holds."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes of content."""
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True)
class TextSettings:
    """How text is read; see `prepare`. `repeated_lines` is a file of `find_repeated_lines`."""

    whole_files: bool
    language: str
    strict: bool
    repeated_lines: Path | None = None

    def reader(self) -> "PortionReader":
        """Return a reader with these settings."""
        return PortionReader(self)

    def drop_into(self, dropped: Dropped) -> Drop:
        """Return the `Drop` that adds to `dropped`, or with `strict` the one that refuses."""
        return refuse if self.strict else dropped.note


class PortionReader:
    """Reads the documents of portions, without repeated lines, and keeps the last file open."""

    def __init__(self, settings: TextSettings) -> None:
        self._settings, self._reader = settings, Reader(settings.whole_files)

    def __call__(self, portion: Portion, dropped: Dropped) -> Iterator[Document]:
        """Yield the documents of a portion in order. What is left out is noted in `dropped`."""
        drop = self._settings.drop_into(dropped)
        documents = (document for piece in portion.pieces for document in self._reader.documents(piece, drop))
        repeated = self._settings.repeated_lines
        return documents if repeated is None else LineFilter(repeated).filtered(documents, dropped)


class PartWriter:
    """Encodes portions into parts, and remembers words in about `word_bytes` bytes from one to the next."""

    def __init__(self, settings: TextSettings, tokenizer: Tokenizer, word_bytes: int) -> None:
        self._settings, self._read = settings, settings.reader()
        self._encoder = TextEncoder(tokenizer, word_bytes)
        self._vocab_size, self._special = tokenizer.get_vocab_size(), special_tokens(tokenizer)
        self._empty = {
            "tokens": np.zeros(0, token_dtype(tokenizer.get_vocab_size())),
            "sentence_lengths": np.zeros(0, np.uint8),
            "document_sentences": np.zeros(0, np.int64),
            "document_tokens": np.zeros(0, np.int64),
            "hashes": np.zeros((0, 2), np.uint64),
            "origins": np.zeros((0, 2), ORIGIN_DTYPE),
        }

    def __call__(self, portion: Portion, path: Path) -> None:
        """Write the part of `portion` as the file `path`."""
        dropped = Dropped()
        documents = self._usable(self._read(portion, dropped), self._settings.drop_into(dropped))
        blocks = [self._encoded(block, dropped) for block in blocks_of(documents)]
        arrays: dict[str, Any] = {
            name: np.concatenate([empty, *(block[name] for block in blocks)], dtype=empty.dtype, casting="unsafe")
            for name, empty in self._empty.items()
        }
        arrays["dropped"] = np.array(json.dumps(asdict(dropped)))
        with written_aside(path, DataError) as file:
            np.savez(file, **arrays)

    def _usable(self, documents: Iterable[Document], drop: Drop) -> Iterator[Document]:
        for document in documents:
            fault = document.ids.fault(self._vocab_size, self._special) if document.ids is not None else None
            if fault is None:
                yield document
            else:
                drop(document.source, document.line, *fault)

    def _sentences(self, documents: Sequence[Document]) -> Iterator[tuple[list[int], Array, Array]]:
        """Yield ids of some sentences in a row, the number of each, and for each the number of its document."""
        for number, document in enumerate(documents):
            if document.ids is not None:
                yield [number] * len(document.ids.lengths), *document.ids
        texts = (document.text for document in documents)
        for owners, sentences in _rounds(texts, self._settings.language):
            yield owners, *self._encoder.encode(sentences)

    def _encoded(self, documents: list[Document], dropped: Dropped) -> dict[str, Array]:
        tokens, run_lengths = [self._empty["tokens"]], [self._empty["sentence_lengths"]]
        # Sentences (rounded up to runs) and tokens of each document.
        sums = np.zeros((len(documents), 2), np.int64)
        for owners, ids, lengths in self._sentences(documents):
            runs, found = _runs(lengths)
            tokens.append(ids.astype(self._empty["tokens"].dtype))
            run_lengths.append(found)
            np.add.at(sums, np.array(owners), np.stack([runs, lengths], axis=1))
        for index in np.flatnonzero(sums[:, 1] < 2).tolist():
            dropped.note(documents[index].source, documents[index].line, TOO_SHORT, "")
        hashes = b"".join(document.digest()[:16] for document in documents)
        return {
            "tokens": np.concatenate(tokens),
            "sentence_lengths": np.concatenate(run_lengths),
            "document_sentences": sums[:, 0],
            "document_tokens": sums[:, 1],
            "hashes": np.frombuffer(hashes, ">u8").reshape(-1, 2),
            "origins": np.array([(document.source.number, document.line) for document in documents], ORIGIN_DTYPE),
        }


def _runs(lengths: Array) -> tuple[Array, Array]:
    """Return how many runs each sentence becomes, int64 [S], and the length of each run, uint8.

    A sentence becomes one run for every `_LONGEST_SENTENCE` tokens; one without tokens becomes none.
    """
    runs = -(-lengths // _LONGEST_SENTENCE)
    run_lengths = np.full(runs.sum(), _LONGEST_SENTENCE, np.uint8)
    some = runs > 0
    run_lengths[np.cumsum(runs)[some] - 1] = (lengths - (runs - 1) * _LONGEST_SENTENCE)[some]
    return runs, run_lengths


def _rounds(texts: Iterable[str], language: str) -> Iterator[tuple[list[int], list[str]]]:
    """Yield sentences that are encoded at once, and the number of the text that each is from."""
    owners: list[int] = []
    sentences: list[str] = []
    size = 0
    for number, text in enumerate(texts):
        for sentence in split_sentences(text, language):
            owners.append(number)
            sentences.append(sentence)
            size += len(sentence)
            if size >= _CHARACTERS_AT_ONCE:
                yield owners, sentences
                owners, sentences, size = [], [], 0
    if sentences:
        yield owners, sentences


def part_path(folder: Path, number: int) -> Path:
    """Return the file of a part."""
    return folder / f"part-{number:06d}.npz"


def load_part(folder: Path, number: int, *names: str) -> list[Array]:
    """Return arrays of a part by their names; `hashes` is uint64 [D, 2]. Raises `DataError` if it is damaged."""
    path = part_path(folder, number)
    try:
        with np.load(path) as part:
            return [part[name] for name in names]
    except Exception as error:  # zip files can be damaged in many ways
        raise DataError(f"{path} cannot be read ({error}): remove it, and run the same command again") from error


def load_dropped(folder: Path, number: int) -> Dropped:
    """Return what the portion of a part left out. Raises `DataError` if the part is damaged."""
    return Dropped(**json.loads(load_part(folder, number, "dropped")[0].item()))
