"""Files that are complete or absent: written under another name, flushed to the disk, then renamed."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import TypeAdapter, ValidationError

from lucid.errors import LucidError

T = TypeVar("T")


@contextmanager
def written_aside(path: Path, error_class: type[LucidError]) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` when the block ends, and is deleted if the block fails.

    Raises `error_class` if writing fails, for example on a full disk.
    """
    aside = path.with_name(path.name + ".partial")
    try:
        with aside.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        flush(path.parent)
    except OSError as error:
        raise error_class(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Any fault of the text is a `ValueError`, too deep nesting included."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_dataclass(kind: type[T], text: bytes) -> T:
    """Return the `kind` that a JSON text describes. Raises a `ValueError` that names the first wrong value."""
    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{field} is missing or of the wrong kind" if field else first["msg"]) from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
