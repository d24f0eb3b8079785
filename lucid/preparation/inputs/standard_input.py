"""Keeps the standard input in a file, so that it can be read several times, and in pieces, like any other."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from lucid.errors import DataError
from lucid.files import written_aside
from lucid.preparation.inputs.sources import STANDARD_INPUT, Choice, Source, named_source

SPOOLED_FILE = "standard-input"


@contextmanager
def spooled(sources: Sequence[Source], folder: Path, choice: Choice) -> Iterator[list[Source]]:
    """Yield the sources. If the standard input is one of them, a copy of it in `folder` takes its place.

    The copy is removed when the block ends, and the folder too if it is new and then empty. Raises `DataError` if the
    standard input is closed, is neither text nor a table, or cannot be written.
    """
    path, is_new = folder / SPOOLED_FILE, not folder.exists()
    try:
        yield [_spooled(path, source, choice) if source.path == STANDARD_INPUT else source for source in sources]
    finally:
        path.unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):  # it holds work to go on with
                folder.rmdir()


def _spooled(path: Path, source: Source, choice: Choice) -> Source:
    if sys.stdin is None:
        raise DataError("the standard input is closed: give the text to this command (`... | lucid prepare -`)")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path, DataError) as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
    return replace(named_source(source.name, path, choice, source.field), number=source.number)
