"""The manifest of a prepared corpus: what made it, what is in it, and the checksum of every file.

It is written last, so a folder with a valid manifest is a whole corpus, and one without is none.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lucid.errors import DataError
from lucid.files import sha256_of, written_aside

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Shard:
    """One piece of a split: `name` begins its three files, `<name>.tokens.npy`, `.sentences.npy`, `.documents.npy`."""

    name: str
    documents: int
    sentences: int
    tokens: int


@dataclass(frozen=True)
class Split:
    """What one split (`train` or `held_out`) holds; `dropped` counts the documents left out, by reason."""

    documents: int
    sentences: int
    tokens: int
    dropped: Mapping[str, int]
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class FileRecord:
    """The size and the SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`made_from` holds the inputs and settings of `prepare`; `files` is by path within the folder."""

    made_from: Mapping[str, Any]
    tokenizer_hash: str
    vocab_size: int
    special_tokens: Mapping[str, int]
    splits: Mapping[str, Split]
    files: Mapping[str, FileRecord]
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def identity(self) -> str:
        """A hash that two corpora share if their tokens, splits and tokenizer are the same, wherever they came from."""
        content = {name: record.sha256 for name, record in self.files.items()}
        return _hash([self.format_version, self.tokenizer_hash, self.vocab_size, content])

    def write(self, folder: Path) -> None:
        """Write it into `folder`, whole or not at all."""
        content = asdict(self)
        with written_aside(folder / MANIFEST_NAME, DataError) as file:
            file.write(json.dumps({**content, "sha256": _hash(content)}, indent=1).encode())

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of the corpus in `folder`; `DataError` if it is missing, damaged, or of another version."""
        path = folder / MANIFEST_NAME
        if not path.is_file():
            what = "has no manifest, so it is not a whole corpus" if folder.is_dir() else "does not exist"
            raise DataError(f"{folder} {what}: make it with `lucid prepare INPUT --output {folder}`")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            checksum = content.pop("sha256")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error}): prepare the corpus again, with --overwrite") from error
        if content.get("format_version") != FORMAT_VERSION:
            raise DataError(f"{path} was written by another version of lucid: prepare the corpus again")
        if checksum != _hash(content):
            raise DataError(f"{path} is damaged (its checksum differs): prepare the corpus again, with --overwrite")
        splits = {name: _split(value) for name, value in content.pop("splits").items()}
        files = {name: FileRecord(**value) for name, value in content.pop("files").items()}
        return cls(splits=splits, files=files, **content)

    def check_files(self, folder: Path, *, checksums: bool) -> None:
        """Raise `DataError`, naming the file, if one is missing or of another size, or with `checksums` was altered."""
        for name, record in self.files.items():
            path = folder / name
            if not path.is_file():
                problem = "is missing"
            elif path.stat().st_size != record.bytes:
                problem = f"has {path.stat().st_size} bytes instead of {record.bytes}"
            elif checksums and sha256_of(path) != record.sha256:
                problem = "was altered: its checksum differs"
            else:
                continue
            raise DataError(f"{path} {problem}: copy the corpus again, or prepare it again with --overwrite")


def record_files(folder: Path, names: list[str]) -> dict[str, FileRecord]:
    """Return the record of each file of `names`, paths within `folder`."""
    return {name: FileRecord((folder / name).stat().st_size, sha256_of(folder / name)) for name in sorted(names)}


def _split(content: dict[str, Any]) -> Split:
    shards = tuple(Shard(**shard) for shard in content.pop("shards"))
    return Split(shards=shards, **content)


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
