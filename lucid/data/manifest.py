"""The manifest of a prepared corpus: its inputs and settings, its contents, and the checksum of every file.

It is written last, so a folder with a valid manifest holds a whole corpus, and any other folder holds none.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from lucid.data.tokenizer import SpecialTokens
from lucid.errors import DataError
from lucid.files import check_is_file, read_bytes, reason_of, sha256_of, written_aside
from lucid.json_values import parse_dataclass, parse_json

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 2
TRAIN, HELD_OUT = "train", "held_out"
SHARD_PARTS = "tokens", "sentences", "documents"
OFFSET_DTYPE = np.dtype(np.int64)
# One more part, which says where documents come from (`origins.py`). Corpora of earlier versions do not have it.
ORIGINS, ORIGIN_DTYPE = "origins", np.dtype(np.int64)
TOKENIZER_FOLDER = "tokenizer"
# Lists what was left out: a file, a line and a reason each.
DROPPED_FILE = "dropped.txt"
# The number of threads that compute checksums.
_READERS = 4


def _within_the_folder(name: str) -> str:
    """Refuse a name that may lead out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or path.as_posix() != name or not path.name:
        raise ValueError("this is not the name of a file within the folder")
    return name


FileName = Annotated[str, AfterValidator(_within_the_folder)]
# A number of documents, sentences, tokens or bytes.
Quantity = Annotated[int, Field(ge=0, lt=2**48)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


@dataclass(frozen=True)
class Shard:
    """One piece of a split, in the files `<name>.tokens.npy`, `<name>.sentences.npy` and `<name>.documents.npy`."""

    name: FileName
    documents: Quantity
    sentences: Quantity
    tokens: Quantity

    @property
    def files(self) -> list[str]:
        """The names of the files that training reads."""
        return [shard_file(self.name, part) for part in SHARD_PARTS]


@dataclass(frozen=True)
class LeastKnown:
    """A document with many unknown tokens. It comes from the input number `source`, and the line `line` of that."""

    source: Quantity
    line: Quantity
    tokens: Quantity
    unknown: Quantity


@dataclass(frozen=True)
class Split:
    """The contents of one split (`train` or `held_out`).

    `unknown` of the tokens are [UNK], most of them in the documents `least_known`. There are no `words` in corpora of
    earlier versions, which did not count them.
    """

    documents: Quantity
    sentences: Quantity
    tokens: Quantity
    shards: tuple[Shard, ...]
    words: Quantity = 0
    unknown: Quantity = 0
    least_known: tuple[LeastKnown, ...] = ()


@dataclass(frozen=True)
class FileRecord:
    """The size and the SHA-256 of one file."""

    bytes: Quantity
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`made_from` holds the inputs and settings of `prepare`; the keys of `files` are paths within the folder.

    `dropped` counts the lines, documents and files that were left out, by reason.
    """

    made_from: Mapping[str, Any]
    dropped: Mapping[str, Quantity]
    tokenizer_hash: str
    vocab_size: Annotated[int, Field(gt=0, lt=2**31)]
    special_tokens: Mapping[str, TokenId]
    splits: Mapping[str, Split]
    files: Mapping[FileName, FileRecord]
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def identity(self) -> str:
        """A hash that is equal for corpora of equal tokens, splits and tokenizers, whatever they were made from."""
        content = {
            name: record.sha256
            for name, record in self.files.items()
            if name != DROPPED_FILE and not name.endswith(shard_file("", ORIGINS))
        }
        return _hash([self.format_version, self.tokenizer_hash, self.vocab_size, content])

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`, whole or not at all."""
        content = asdict(self)
        with written_aside(folder / MANIFEST_NAME, DataError) as file:
            file.write(json.dumps({**content, "sha256": _hash(content)}, indent=1).encode())

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of the corpus in `folder`; `DataError` if it is missing, damaged, or of another version."""
        path = folder / MANIFEST_NAME
        if not path.exists():
            what = "has no manifest, so it is not a whole corpus" if folder.is_dir() else "does not exist"
            raise DataError(f"{folder} {what}: make it with `lucid prepare INPUT --output {folder}`")
        try:
            text = read_bytes(path)
            content = parse_json(text)
            checksum = content.pop("sha256")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise _damaged(path, reason_of(error)) from error
        if content.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{path} was written by another version of lucid: prepare the corpus again, with --overwrite"
            )
        if checksum != _hash(content):
            raise _damaged(path, "its checksum differs")
        try:
            manifest = parse_dataclass(cls, text)
        except ValueError as error:
            raise _damaged(path, str(error)) from error
        if problem := manifest._contradiction():
            raise _damaged(path, problem)
        return manifest

    def _contradiction(self) -> str | None:
        """Return a sentence about the first contradiction between two fields, or None if there is none."""
        if set(self.special_tokens) != set(SpecialTokens.__dataclass_fields__):
            return "its special tokens are not BERT's"
        if max(self.special_tokens.values()) >= self.vocab_size:
            return "a special token lies outside the vocabulary"
        for name, split in self.splits.items():
            needed = [frequencies_file(name), *(file for shard in split.shards for file in shard.files)]
            if unlisted := [file for file in needed if file not in self.files]:
                return f"it has no record of {unlisted[0]}"
            if not split.unknown <= split.words <= split.tokens or not self._has(split.least_known):
                return f"the unknown words of {name} are not among its words"
            for count in ("documents", "sentences", "tokens"):
                if getattr(split, count) != sum(getattr(shard, count) for shard in split.shards):
                    return f"the {count} of {name} are not the sum of its shards'"
        return None

    def _has(self, documents: Iterable[LeastKnown]) -> bool:
        inputs = self.made_from.get("inputs")
        count = len(inputs) if isinstance(inputs, list) else 0
        return all(document.source < count and document.unknown <= document.tokens > 0 for document in documents)

    def check_files(self, folder: Path, *, checksums: bool) -> None:
        """Raise a `DataError` that names the file if one is missing or has another size.

        With `checksums` also compare the contents. Threads read several files at once, because computing a checksum
        releases the interpreter's lock.
        """
        with ThreadPoolExecutor(_READERS) as threads:
            checked = threads.map(partial(_problem, folder, checksums), self.files.items())
            problems = [problem for problem in checked if problem]
        if problems:
            raise DataError(f"{problems[0]}: copy the corpus again, or prepare it again with --overwrite")


def _problem(folder: Path, checksums: bool, entry: tuple[str, FileRecord]) -> str | None:
    name, record = entry
    path = folder / name
    try:
        if not path.exists():
            return f"{path} is missing"
        check_is_file(path)
        if path.stat().st_size != record.bytes:
            return f"{path} has {path.stat().st_size} bytes instead of {record.bytes}"
        if checksums and sha256_of(path) != record.sha256:
            return f"{path} was altered: its checksum differs"
    except (OSError, ValueError) as error:
        return f"{path} cannot be read ({reason_of(error)})"
    return None


def _damaged(path: Path, problem: str) -> DataError:
    return DataError(f"{path} is damaged ({problem}): prepare the corpus again, with --overwrite")


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest of uint16 and uint32 that holds every id."""
    return np.dtype(np.uint16 if vocab_size < 1 << 16 else np.uint32)


def shard_file(name: str, part: str) -> str:
    """Return the name of the file with one of the `SHARD_PARTS`, or the `ORIGINS`, of the shard `name`."""
    return f"{name}.{part}.npy"


def frequencies_file(split: str) -> str:
    """Return the name of the file with the number of occurrences of each token in a split."""
    return f"{split}.frequencies.npy"


def record_files(folder: Path, names: list[str]) -> dict[str, FileRecord]:
    """Return the record of each file in `names`, which are paths within `folder`."""
    return {name: FileRecord((folder / name).stat().st_size, sha256_of(folder / name)) for name in sorted(names)}


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
