"""Keeps the standard input in a file, so that it can be read several times, and in pieces, like any other."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lucid.errors import DataError
from lucid.files import written_aside
from lucid.preparation.sources import STANDARD_INPUT, Choice, Source, named_source

SPOOLED_FILE = "standard-input"


def spooled(sources: Sequence[Source], folder: Path, choice: Choice) -> list[Source]:
    """Return the sources, in which a file in `folder` with all of the standard input has taken its place, if it is one.

    Raises `DataError` if it is closed, is neither text nor a table, or cannot be written.
    """
    return [
        replace(_spooled(folder / SPOOLED_FILE, source, choice), number=source.number)
        if source.path == STANDARD_INPUT
        else source
        for source in sources
    ]


def _spooled(path: Path, source: Source, choice: Choice) -> Source:
    if sys.stdin is None:
        raise DataError("the standard input is closed: give the text to this command (`... | lucid prepare -`)")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path, DataError) as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
    return named_source(source.name, path, choice, source.field)
