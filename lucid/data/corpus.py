"""Reads documents out of what a user has: folders and files of text, or the documentation of Python itself.

This is where text comes in: `prepare` streams these documents through sentence splitting and the tokenizer into
shards. The order of the documents is a function of the inputs alone.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lucid.data.python_docs import module_files, python_documents
from lucid.errors import DataError
from lucid.files import parse_json

PYTHON_DOCS = "python-docs"
SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")

# Characters after which a document of plain text without blank lines goes on as a new one: memory stays bounded.
_LONGEST_DOCUMENT = 1 << 22
# Bytes of one line: a small compressed file may hold a line of any length.
_LONGEST_LINE = 1 << 24


@dataclass(frozen=True)
class Document:
    """One text; `name` says where it came from, as `file:line`."""

    name: str
    text: str


@dataclass(frozen=True)
class Source:
    """One file, or the default corpus where `path` is None. `name` does not depend on the working directory."""

    name: str
    path: Path | None

    def documents(self) -> Iterator[Document]:
        """Yield its documents in order, those without any text left out."""
        if self.path is None:
            return (Document(name, text) for name, text in python_documents())
        return _json_documents(self.path) if ".jsonl" in self.path.name else _text_documents(self.path)

    def fingerprint(self) -> dict[str, str | int]:
        """Return `name`, `bytes` and `sha256` of its content, for telling whether it has changed."""
        digest, size = hashlib.sha256(), 0
        for path in module_files() if self.path is None else [self.path]:
            try:
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
                        size += len(block)
            except OSError as error:
                raise _unreadable(path, error) from error
        return {"name": self.name, "bytes": size, "sha256": digest.hexdigest()}


def read_documents(inputs: Sequence[str | Path]) -> Iterator[Document]:
    """Yield the documents of `inputs`, one after another, holding one in memory at a time.

    An input is a `.txt` file (a blank line separates documents), a `.jsonl` file (one object a line, the text in its
    field `text`), either of them with `.gz`, a folder of such files, or the word `python-docs`: the documentation
    of this Python. Raises `DataError` on an input that is missing, damaged, or holds nothing that can be read.
    """
    for source in find_sources(inputs):
        yield from source.documents()


def find_sources(inputs: Sequence[str | Path]) -> list[Source]:
    """Return the files of `inputs` in reading order: the inputs as given, each folder's files by their sorted paths."""
    if not inputs:
        raise DataError(f"no input was given: name files or folders of text, or {PYTHON_DOCS!r}")
    sources: list[Source] = []
    for entry in inputs:
        path = Path(entry)
        if entry == PYTHON_DOCS:
            sources.append(Source(PYTHON_DOCS, None))
        elif path.is_dir():
            sources += _folder_sources(path)
        elif not path.is_file():
            what = "is neither a file nor a folder" if path.exists() else "does not exist"
            raise DataError(f"input {str(path)!r} {what}: check the path, or use {PYTHON_DOCS!r}")
        elif path.name.endswith(SUFFIXES):
            sources.append(Source(path.name, path))
        else:
            raise DataError(f"input {str(path)!r} is of an unknown kind: use {', '.join(SUFFIXES)}")
    return sources


def _folder_sources(folder: Path) -> list[Source]:
    paths = sorted(path for path in folder.rglob("*") if path.name.endswith(SUFFIXES) and path.is_file())
    if not paths:
        raise DataError(f"input folder {str(folder)!r} holds no {', '.join(SUFFIXES)} file")
    return [Source(path.relative_to(folder).as_posix(), path) for path in paths]


def _text_documents(path: Path) -> Iterator[Document]:
    lines: list[str] = []
    first, size = 1, 0
    for number, line in _numbered_lines(path):
        if lines and (not line.strip() or size > _LONGEST_DOCUMENT):
            yield Document(f"{path}:{first}", "\n".join(lines))
            lines, size = [], 0
        if line.strip():
            first = first if lines else number
            lines.append(line)
            size += len(line) + 1
    if lines:
        yield Document(f"{path}:{first}", "\n".join(lines))


def _json_documents(path: Path) -> Iterator[Document]:
    for number, line in _numbered_lines(path):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: this line is not JSON ({error}): mend or remove it") from error
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise DataError(f"{path}:{number}: this line has no text: each needs a field 'text' that is a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{path}:{number}: half a surrogate pair in the text: mend or remove the line") from error
        if text.strip():
            yield Document(f"{path}:{number}", text)


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file, without their ends, with their numbers from 1."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(_LONGEST_LINE + 1):
                number += 1
                if len(line) > _LONGEST_LINE:
                    raise DataError(
                        f"{path}:{number}: this line is longer than {_LONGEST_LINE >> 20} MiB: break it into more "
                        "(in .txt, as with fold -s)"
                    )
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8 ({error.reason}): convert the file, as with iconv") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip after line {number} ({error}): get the file again") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror or error}): check that it is there and readable")
