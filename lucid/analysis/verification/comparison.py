"""Compares what a replay has made with a checkpoint of the run, bit for bit, and with its log."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from lucid.backend import Array
from lucid.errors import CheckpointError
from lucid.files import reason_of
from lucid.models.bert import hub
from lucid.training.checkpoints.checkpoint import OPTIMIZER_FILE, TrainingState, open_checkpoint
from lucid.training.log.metrics import Entry, is_evaluation, read_lines
from lucid.training.start import difference

_COUNTERS = "step", "samples_consumed", "optimizer_updates", "skipped_steps", "skipped_in_a_row"
# What the log has of each step that does not depend on the clock.
_LOGGED = (
    "loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy", "gradient_norm", "learning_rate", "skipped_steps",
    "tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Replayed:
    """What a replay has made: arrays by name, its state, and the lines that it would have logged."""

    weights: Mapping[str, Array]
    moments: Mapping[str, Array]
    state: TrainingState
    entries: list[Entry]


@dataclass(frozen=True)
class Difference:
    """Numbers of one name whose bits differ: `count` of `size`, by at most `largest`."""

    name: str
    count: int
    size: int
    largest: float

    def __str__(self) -> str:
        return f"{self.name}: {self.count:,} of {self.size:,} numbers differ, by at most {self.largest:.3g}"


@dataclass
class Comparison:
    """What differs between a replay and the record of a run, in the order in which it was found.

    The last checkpoint that was compared is of step `step`, and `lines` lines of the log were compared. `logged` is a
    sentence about the first line that differs. `environment` says in what the software or the numerical environment
    differs.
    """

    step: int
    lines: int = 0
    arrays: list[Difference] = field(default_factory=list)
    counters: list[str] = field(default_factory=list)
    logged: str | None = None
    environment: str = ""

    @property
    def is_same(self) -> bool:
        return not (self.arrays or self.counters or self.logged)


def compare(replayed: Replayed, folder: Path, metrics: Path) -> Comparison:
    """Compare with the checkpoint `folder` and the log `metrics` of the run. Raises `CheckpointError`."""
    recorded, pairs = open_checkpoint(folder).state, _pairs(replayed.entries, metrics)
    return Comparison(
        replayed.state.step,
        len(pairs),
        [
            *_differences(replayed.weights, folder / hub.WEIGHTS_FILE),
            *_differences(replayed.moments, folder / OPTIMIZER_FILE),
        ],
        _other_counters(replayed.state, recorded),
        _other_line(pairs),
        _environment(replayed.state, recorded),
    )


def _environment(own: TrainingState, recorded: TrainingState) -> str:
    """Return what differs between the software and the numerical environment of a replay and those of the run."""
    if not recorded.software:
        unknown = "an earlier version of lucid trained these steps, and did not note which"
        return "; ".join(filter(None, [unknown, difference(own.numerics, recorded.numerics)]))
    return difference({**own.software, **own.numerics}, {**recorded.software, **recorded.numerics})


def _differences(own: Mapping[str, Array], path: Path) -> Iterator[Difference]:
    """Yield how arrays differ from those of the same names in the file `path`."""
    try:
        with safe_open(path, framework="numpy") as file:
            for name, array in own.items():
                recorded = file.get_tensor(name)
                different = np.ascontiguousarray(array).view(np.uint32) != recorded.view(np.uint32)
                if count := int(np.count_nonzero(different)):
                    with np.errstate(invalid="ignore", over="ignore"):
                        largest = float(np.abs(array[different] - recorded[different]).max())
                    yield Difference(name, count, array.size, largest)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be compared: {error}") from error


def _other_counters(own: TrainingState, recorded: TrainingState) -> list[str]:
    """Return a sentence for each counter that differs, and for the sums of the steps that are not logged yet."""
    found = []
    for name in _COUNTERS:
        values = getattr(own, name), getattr(recorded, name)
        if values[0] != values[1]:
            found.append(f"{name} is {values[0]:,} in the replay, {values[1]:,} in the checkpoint")
    if np.array(own.window).tobytes() != np.array(recorded.window).tobytes():
        found.append("the sums of losses since the last line of the log differ")
    return found


def _pairs(entries: Sequence[Entry], path: Path) -> list[tuple[Entry, Entry]]:
    """Return the lines that a replay would log, each with the run's own for that step, if it has one."""
    try:
        lines = read_lines(path) if os.path.lexists(path) else []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from error
    recorded = {line["step"]: line for line in lines if not is_evaluation(line)}
    return [(entry, recorded[entry["step"]]) for entry in entries if entry["step"] in recorded]


def _other_line(pairs: Sequence[tuple[Entry, Entry]]) -> str | None:
    """Return a sentence about the first line of the log that differs from the replay's, None if all are the same."""
    for entry, line in pairs:
        for name in _LOGGED:
            if name in line and name in entry and line[name] != (value := _as_logged(entry[name])):
                return f"step {entry['step']:,}: {name} is {value} in the replay, {line[name]} in the log"
    return None


def _as_logged(value: float) -> float | None:
    return value if math.isfinite(value) else None
