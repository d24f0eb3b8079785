"""The log of a run: JSON lines, and TensorBoard's events."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from lucid.errors import ConfigError, TrainingError
from lucid.files import parse_json, written_aside

METRICS_FILE = "metrics.jsonl"

# A larger number, far beyond single precision, is damage.
_LARGEST = 1e100


class MetricsLog:
    """Appends to `metrics.jsonl`, one object a line, and to TensorBoard's events if asked.

    A run that resumes at `first_step` drops later lines, because it takes those steps again. A run that had `ended`
    drops its last evaluation, which it does again, too.
    """

    def __init__(self, folder: Path, first_step: int, ended: bool, tensorboard: bool) -> None:
        self.path = folder / METRICS_FILE
        event_writer = _event_writer() if tensorboard else None
        _make(folder)
        entries = read_lines(self.path) if self.path.exists() else []
        kept = [
            entry
            for entry in entries
            if entry["step"] < first_step
            or (entry["step"] == first_step and not (ended and "held_out_mlm_loss" in entry))
        ]
        with written_aside(self.path, ConfigError) as file:
            file.writelines(_line(entry) for entry in kept)
        self._file = self.path.open("ab")
        # TensorBoard drops its events of later steps.
        self._events = event_writer(str(folder / "tensorboard"), purge_step=first_step + 1) if event_writer else None

    def write(self, entry: dict[str, Any]) -> None:
        """Write one line, which has the key `step`. Raises `TrainingError` if it cannot be written."""
        try:
            self._file.write(_line(entry))
            self._file.flush()
        except OSError as error:
            raise TrainingError(f"{self.path} could not be written: {error.strerror or error}") from error
        if self._events is not None:
            for name, value in entry.items():
                if name != "step" and math.isfinite(value):
                    self._events.add_scalar(name, value, entry["step"])

    def close(self) -> None:
        # `write` has raised this error before.
        with suppress(OSError):
            self._file.close()
        if self._events is not None:
            self._events.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a metrics file, without lines that a kill or a full disk has damaged."""
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = parse_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and _is_step(entry.get("step")) and all(map(_is_plausible, entry.values())):
            entries.append(entry)
    return entries


def _is_step(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**63


def _is_plausible(value: object) -> bool:
    """Return whether `MetricsLog` may have written a value: null, or a number of usual size."""
    return value is None or (isinstance(value, int | float) and abs(value) < _LARGEST)


def _line(entry: dict[str, Any]) -> bytes:
    """Return the entry as a line of JSON, in which NaN and infinity become null."""
    values = {name: value if value is not None and math.isfinite(value) else None for name, value in entry.items()}
    return json.dumps(values, allow_nan=False).encode() + b"\n"


def _event_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "train.tensorboard is true, but tensorboardX is not installed: pip install tensorboardX"
        ) from error
    return SummaryWriter


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run_folder: {folder} could not be made: {error.strerror}") from error
