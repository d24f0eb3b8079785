"""The log of a run: JSON lines, and TensorBoard's events."""

import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lucid.errors import ConfigError, DataError
from lucid.files import append, open_text, reason_of, written_aside
from lucid.json_values import parse_json
from lucid.training.log.tensorboard import Events

METRICS_FILE = "metrics.jsonl"

# The key `step`, and a number by the name of each metric.
Entry = dict[str, Any]

# A larger number, far beyond single precision, is damage.
_LARGEST = 1e100
# Characters: longer lines are damage, too.
_LONGEST_LINE = 1 << 20
# Entries that are kept while a file cannot be written.
_MOST_WAITING = 100_000


class MetricsLog:
    """Appends to `metrics.jsonl`, one object a line, and to TensorBoard's events if asked.

    A run that resumes at `first_step` drops later lines, because it takes those steps again. A run that had `ended`
    drops its last evaluation, which it does again, too.

    A file that can no longer be written does not end the run: `warn` gets one sentence, entries are kept, and each
    further entry tries again.
    """

    def __init__(
        self, folder: Path, first_step: int, ended: bool, tensorboard: bool, warn: Callable[[str], None]
    ) -> None:
        self.path = folder / METRICS_FILE
        self._outputs = [_Output(self.path, _line, warn)]
        if tensorboard:
            events = Events()
            beginning = events.beginning(first_step + 1)
            self._outputs.append(_Output(events.file_in(folder), events.of_entry, warn, beginning))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            entries = read_lines(self.path) if self.path.exists() else []
        except OSError as error:
            raise ConfigError(f"run_folder: {error.filename} cannot be used: {reason_of(error)}") from error
        # The entries that are already there.
        self.kept = [
            entry
            for entry in entries
            if entry["step"] < first_step or (entry["step"] == first_step and not (ended and is_evaluation(entry)))
        ]
        with written_aside(self.path, ConfigError) as file:
            file.writelines(_line(entry) for entry in self.kept)

    def write(self, entry: Entry) -> None:
        """Write one line, which has the key `step`."""
        for output in self._outputs:
            output.write(entry)

    def close(self) -> None:
        for output in self._outputs:
            output.write()


class _Output:
    """A file that gets `bytes_of` each entry, later if it cannot be written for a while; a new file begins with these.

    It is opened for each entry, so that a folder that was removed is noticed, and made again.
    """

    def __init__(
        self, path: Path, bytes_of: Callable[[Entry], bytes], warn: Callable[[str], None], beginning: bytes = b""
    ) -> None:
        self._path, self._bytes_of, self._warn, self._beginning = path, bytes_of, warn, beginning
        # Empty, unless the file could not be written last time.
        self._waiting: deque[Entry] = deque(maxlen=_MOST_WAITING)

    def write(self, *entries: Entry) -> None:
        """Write the entries that wait, and then these."""
        is_first_failure = not self._waiting
        self._waiting.extend(entries)
        try:
            while self._waiting:
                self._append(self._bytes_of(self._waiting[0]))
                self._waiting.popleft()
        except OSError as error:
            if is_first_failure:
                self._warn(f"{self._path} could not be written: {reason_of(error)}; training goes on, and tries again")

    def _append(self, content: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A full disk leaves an empty file.
        is_new = not self._path.exists() or self._path.stat().st_size == 0
        append(self._path, self._beginning + content if is_new else content)


def read_lines(path: Path) -> list[Entry]:
    """Return the entries of a metrics file, without lines that a kill or a full disk has damaged. Raises `OSError`."""
    return [entry for entry in _entries(path) if entry is not None]


def damaged_lines(path: Path) -> list[int]:
    """Return the numbers, from 1, of the lines that `read_lines` leaves out. Raises `OSError`."""
    return [number for number, entry in enumerate(_entries(path), start=1) if entry is None]


def _entries(path: Path) -> Iterator[Entry | None]:
    """Yield the entry of each line, None for one that is damaged."""
    with open_text(path, errors="replace") as file:
        while line := file.readline(_LONGEST_LINE):
            try:
                entry = parse_json(line)
            except ValueError:
                entry = None
            is_whole = isinstance(entry, dict) and _is_step(entry.get("step"))
            yield entry if is_whole and all(map(_is_plausible, entry.values())) else None


def log_of(run_folder: Path) -> list[Entry]:
    """Return the log of the run in `run_folder`. Raises `DataError` if there is none, or if it cannot be read."""
    path = run_folder / METRICS_FILE
    try:
        return read_lines(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path} does not exist: is {run_folder} the folder of a run?") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason_of(error)}") from error


def is_evaluation(entry: Entry) -> bool:
    """Return whether an entry has the results of an evaluation, of whatever corpora, or of probes alone."""
    return any(name.startswith(("held_out_mlm_loss", "probe/")) for name in entry)


def _is_step(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**63


def _is_plausible(value: object) -> bool:
    """Return whether `MetricsLog` may have written a value: null, or a number of usual size."""
    return value is None or (isinstance(value, int | float) and abs(value) < _LARGEST)


def _line(entry: Entry) -> bytes:
    """Return the entry as a line of JSON, in which NaN and infinity become null."""
    values = {name: value if value is not None and math.isfinite(value) else None for name, value in entry.items()}
    return json.dumps(values, allow_nan=False).encode() + b"\n"
