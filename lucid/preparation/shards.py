"""Writes shards from parts, and finally the manifest that makes them a corpus.

A shard is four `.npy` arrays: the tokens of all its sentences in a row; for each sentence the offset of its first
token, and the end; for each document the offset of its first sentence, and the end; for each document its origin.
Offsets count from the shard's own start. No more than one part is held in memory at a time.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy
from tokenizers import Tokenizer

from lucid.backend import Array
from lucid.data.manifest import (
    DROPPED_FILE,
    OFFSET_DTYPE,
    ORIGIN_DTYPE,
    ORIGINS,
    SHARD_PARTS,
    TOKENIZER_FOLDER,
    FileRecord,
    LeastKnown,
    Manifest,
    Shard,
    Split,
    frequencies_file,
    record_files,
    shard_file,
    token_dtype,
)
from lucid.data.tokenizer import TOKENIZER_FILES, load_tokenizer, special_tokens, tokenizer_hash
from lucid.errors import DataError
from lucid.files import read_bytes, written_aside
from lucid.json_values import parse_dataclass
from lucid.preparation.coverage import largest_shares, unknown_in, words_among
from lucid.preparation.inputs.omissions import Dropped
from lucid.preparation.parts import load_part
from lucid.preparation.selection import Selection, ShardPlan


@dataclass(frozen=True)
class ShardRecord:
    """A shard that is written: its counts, its files, how often each token occurs in it, and where many are unknown."""

    shard: Shard
    files: dict[str, FileRecord]
    frequencies: list[int]
    least_known: list[LeastKnown]


def write_shard(
    output: Path, selection: Selection, vocab_size: int, unknown: int, plan: ShardPlan, record: Path
) -> None:
    """Write a shard into the folder `output`, and then its `ShardRecord` as the file `record`.

    `unknown` is the token of an unknown word. Raises `DataError` if the shard cannot be written; then none of its files
    is there.
    """
    names = [shard_file(plan.name, part) for part in (*SHARD_PARTS, ORIGINS)]
    dtypes = token_dtype(vocab_size), OFFSET_DTYPE, OFFSET_DTYPE, ORIGIN_DTYPE
    frequencies = np.zeros(vocab_size, np.int64)
    least_known: list[LeastKnown] = []
    with ExitStack() as files:
        tokens, sentences, documents, origins = arrays = [
            _GrowingArray(files.enter_context(written_aside(output / name, DataError)), dtype, row)
            for name, dtype, row in zip(names, dtypes, ((), (), (), (2,)), strict=True)
        ]
        for taken in _taken(selection, plan):
            documents.append(sentences.length + _starts(taken.document_sentences))
            sentences.append(tokens.length + _starts(taken.sentence_lengths))
            tokens.append(taken.tokens)
            origins.append(taken.origins)
            frequencies += np.bincount(taken.tokens, minlength=vocab_size)
            least_known = largest_shares(
                [*least_known, *unknown_in(taken.tokens, taken.document_tokens, taken.origins, unknown)]
            )
        shard = Shard(plan.name, documents.length, sentences.length, tokens.length)
        documents.append(np.array([shard.sentences]))
        sentences.append(np.array([shard.tokens]))
        for array in arrays:
            array.finish()
    content = ShardRecord(shard, record_files(output, names), frequencies.tolist(), least_known)
    with written_aside(record, DataError) as file:
        file.write(json.dumps(asdict(content)).encode())


class _Documents(NamedTuple):
    """Some documents: all their tokens, the tokens of each sentence; sentences, tokens and origin of each document."""

    tokens: Array
    sentence_lengths: Array
    document_sentences: Array
    document_tokens: Array
    origins: Array

    def only(self, taken: Array) -> "_Documents":
        """Return those documents for which `taken`, bool [D], is true."""
        if taken.all():
            return self
        sentences = np.repeat(taken, self.document_sentences)
        tokens = np.repeat(sentences, self.sentence_lengths)
        of_documents = self.document_sentences, self.document_tokens, self.origins
        return _Documents(
            self.tokens[tokens], self.sentence_lengths[sentences], *(array[taken] for array in of_documents)
        )


def _taken(selection: Selection, plan: ShardPlan) -> Iterator[_Documents]:
    """Yield the documents that a shard takes from each of its parts."""
    for part in plan.parts:
        arrays = load_part(selection.folder, part, *_Documents._fields)
        yield _Documents(*arrays).only(selection.taken(part, plan.split))


class _GrowingArray:
    """A `.npy` file that grows along its first axis. Its header is written again once the length is known.

    `row` is the shape of an element: () in a one-dimensional array.
    """

    def __init__(self, file: BinaryIO, dtype: np.dtype, row: tuple[int, ...]) -> None:
        self._file, self._dtype, self._row, self.length = file, dtype, row, 0
        self._write_header()

    def append(self, values: Array) -> None:
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self.length += len(values)

    def finish(self) -> None:
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        # NumPy pads the header, so it has the same size whatever the length of the first axis.
        description = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.length, *self._row)}
        npy.write_array_header_1_0(self._file, description)


def _starts(lengths: Array) -> Array:
    """Return int64: where each thing starts if things of these lengths lie side by side."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return ends - lengths


def write_manifest(
    output: Path, made_from: Mapping[str, Any], records: Mapping[str, Sequence[Path]], dropped: Iterable[Dropped]
) -> None:
    """Write the manifest of the corpus in `output`, and before it the files that cover all shards of a split.

    `records` holds the files of the `ShardRecord`s of each split.
    """
    files: dict[str, FileRecord] = {}
    splits = {}
    tokenizer = load_tokenizer(output / TOKENIZER_FOLDER)
    for split, paths in records.items():
        written = [parse_dataclass(ShardRecord, read_bytes(path)) for path in paths]
        frequencies = np.array([record.frequencies for record in written], np.int64).sum(axis=0)
        splits[split] = _split(written, tokenizer, frequencies)
        with written_aside(output / frequencies_file(split), DataError) as file:
            np.save(file, frequencies)
        for record in written:
            files |= record.files
    counts = _write_dropped(output / DROPPED_FILE, dropped)
    names = [*(f"{TOKENIZER_FOLDER}/{name}" for name in TOKENIZER_FILES), *map(frequencies_file, splits), DROPPED_FILE]
    manifest = Manifest(
        made_from=made_from,
        dropped=counts,
        tokenizer_hash=tokenizer_hash(tokenizer),
        vocab_size=tokenizer.get_vocab_size(),
        special_tokens=asdict(special_tokens(tokenizer)),
        splits=splits,
        files=dict(sorted((files | record_files(output, names)).items())),
    )
    manifest.write(output)


def _split(records: Sequence[ShardRecord], tokenizer: Tokenizer, frequencies: Array) -> Split:
    shards = [record.shard for record in records]
    return Split(
        documents=sum(shard.documents for shard in shards),
        sentences=sum(shard.sentences for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        shards=tuple(shards),
        words=words_among(tokenizer, frequencies),
        unknown=int(frequencies[special_tokens(tokenizer).unknown]),
        least_known=tuple(largest_shares(document for record in records for document in record.least_known)),
    )


def _write_dropped(path: Path, dropped: Iterable[Dropped]) -> dict[str, int]:
    """List the places where something was left out; return how much there is, by reason."""
    counts: Counter[str] = Counter()
    with written_aside(path, DataError) as file:
        for part in dropped:
            counts.update(part.counts)
            file.writelines(f"{line}\n".encode(errors="backslashreplace") for line in part.lines)
    return dict(sorted(counts.items()))
