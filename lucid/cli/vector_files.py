"""Files of vectors that are written a block at a time, and are whole or not there."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lucid.errors import ConfigError
from lucid.files import written_aside

# Takes texts and their vectors, float32 [texts, C].
Write = Callable[[Sequence[str], np.ndarray], None]


@contextmanager
def vector_file(path: Path, width: int) -> Iterator[Write]:
    """Open the file `path` for vectors of `width` numbers. It replaces what was there when the block ends.

    A `.npy` file is an array, float32 [texts, width]. A `.jsonl` file has an object for each text, with the keys `text`
    and `vector`. Raises `ConfigError` for other names, and if it cannot be written.
    """
    writers: dict[str, type[_Array | _Lines]] = {".npy": _Array, ".jsonl": _Lines}
    if path.suffix not in writers:
        raise ConfigError(f"{path}: the name must end in {' or '.join(writers)}")
    with written_aside(path, ConfigError) as file:
        writer = writers[path.suffix](file, width)
        yield writer.write
        writer.finish()


class _Array:
    """Writes the header of the array again when its number of rows is known: it has room for any number."""

    def __init__(self, file: BinaryIO, width: int) -> None:
        self._file, self._width, self._rows = file, width, 0
        self._write_header()

    def _write_header(self) -> None:
        header: dict[str, Any] = {"shape": (self._rows, self._width), "fortran_order": False, "descr": "<f4"}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        self._file.write(vectors.astype("<f4", copy=False).tobytes())
        self._rows += len(vectors)

    def finish(self) -> None:
        self._file.seek(0)
        self._write_header()


class _Lines:
    """Writes numbers with as many digits as float32 has."""

    def __init__(self, file: BinaryIO, width: int) -> None:
        self._file = file

    def write(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        for text, vector in zip(texts, vectors, strict=True):
            numbers = ", ".join(map(str, vector))
            self._file.write(f'{{"text": {json.dumps(text, ensure_ascii=False)}, "vector": [{numbers}]}}\n'.encode())

    def finish(self) -> None:
        pass
