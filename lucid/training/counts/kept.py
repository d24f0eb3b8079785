"""Keeps what is counted in the corpora of a run in a file of its folder, so that each is counted once."""

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from lucid.errors import ConfigError
from lucid.files import read_bytes, written_aside
from lucid.json_values import parse_json

COUNTS_FILE = "counts.json"


class KeptCounts:
    """Numbers by what they depend on. Without a folder, or if it is only read, new ones are kept in memory alone."""

    def __init__(self, run_folder: Path | None = None, only_read: bool = False) -> None:
        self._path = run_folder / COUNTS_FILE if run_folder is not None else None
        self._only_read = only_read

    @cached_property
    def _known(self) -> dict[str, float]:
        try:
            known = parse_json(read_bytes(self._path)) if self._path is not None else {}
        except (OSError, ValueError):  # missing or damaged: all is counted again
            return {}
        items = known.items() if isinstance(known, dict) else ()
        return {key: value for key, value in items if isinstance(value, float) and value >= 0}

    def get(self, depends_on: list[object], count: Callable[[], float]) -> float:
        """Return the number that depends on these JSON values alone: from the file, or by counting."""
        key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()
        if key not in self._known:
            self._known[key] = count()
            self._write()
        return self._known[key]

    def _write(self) -> None:
        if self._path is None or self._only_read:
            return
        try:
            with written_aside(self._path, ConfigError) as file:
                file.write(json.dumps(self._known).encode())
        except ConfigError:  # such as a full disk: the next start counts again
            pass
