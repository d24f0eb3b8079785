"""Leaves out the lines that stand in many documents, which `repeated_lines` has found.

A line counts without the white space around it. A line without a letter, such as a number, a rule or a brace, is never
left out: it stands in many documents of any kind.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np

from lucid.backend import Array
from lucid.errors import DataError
from lucid.preparation.inputs.documents import Document, blocks_of
from lucid.preparation.inputs.omissions import Dropped

REPEATED_LINE, NOTHING_ELSE = "repeated line", "nothing but repeated lines"
_LETTER = re.compile(r"[^\W\d_]")
# Different lines that a portion lists, and characters of them.
_LISTED, _SHOWN = 20, 60


def load_mapped(path: Path) -> Array:
    """Return the array in a file, which stays there. Raises `DataError` if it is damaged."""
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): remove it, and run the same command again") from error


def stripped_lines(document: Document) -> list[str]:
    """Return the lines of a document without the white space around them."""
    return [line.strip() for line in document.text.split("\n")]


def can_be_left_out(line: str) -> bool:
    """Return whether a line is left out if it is repeated: whether it has a letter."""
    return _LETTER.search(line) is not None


def digest(line: str) -> bytes:
    """Return 128 bits of the hash of a line."""
    return blake2b(line.encode(), digest_size=16).digest()


class LineFilter:
    """Leaves out the lines whose hashes are in the file `path`, as `find_repeated_lines` writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def filtered(self, documents: Iterable[Document], dropped: Dropped) -> Iterator[Document]:
        """Yield the documents without repeated lines; a document that consists of nothing else is left out."""
        repeated = load_mapped(self._path)
        listed: set[str] = set()
        for block in blocks_of(documents):
            lines = [document.text.split("\n") for document in block]
            known = iter(_are_in(repeated, [line for document in block for line in stripped_lines(document)]).tolist())
            for document, found in zip(block, lines, strict=True):
                left_out = [next(known) for _ in found]
                if not any(left_out):
                    yield document
                    continue
                for line in (line.strip() for line, is_repeated in zip(found, left_out, strict=True) if is_repeated):
                    is_new = len(listed) < _LISTED and line not in listed
                    listed |= {line} if is_new else set()
                    dropped.note(document.source, document.line, REPEATED_LINE, line[:_SHOWN], is_new)
                if text := _without(found, left_out):
                    yield replace(document, text=text)
                else:
                    dropped.note(document.source, document.line, NOTHING_ELSE, "")


def _without(lines: Sequence[str], left_out: Sequence[bool]) -> str:
    """Return the text of the other lines, with one blank line in the place of each gap."""
    kept: list[str] = []
    for line, is_left_out in zip(lines, left_out, strict=True):
        if not is_left_out and line.strip():
            kept.append(line)
        elif kept and kept[-1]:
            kept.append("")
    return "\n".join(kept).rstrip("\n")


def _are_in(repeated: Array, lines: Sequence[str]) -> Array:
    """Return bool [L]: whether the hash of each line is one of `repeated`, uint64 [2, N]."""
    found = np.zeros(len(lines), bool)
    candidates = [number for number, line in enumerate(lines) if can_be_left_out(line)]
    digests = b"".join(digest(lines[number]) for number in candidates)
    high, low = np.frombuffer(digests, ">u8").reshape(-1, 2).T.astype(np.uint64)
    places, stops = (np.searchsorted(repeated[0], high, side) for side in ("left", "right"))
    matches = np.zeros(len(candidates), bool)
    while (open_ := places < stops).any():  # more than once only where the first halves of two hashes are equal
        matches[open_] |= repeated[1, places[open_]] == low[open_]
        places += open_
    found[np.array(candidates, np.int64)] = matches
    return found
