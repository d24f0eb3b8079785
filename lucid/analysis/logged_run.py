"""A run as its folder shows it: its log and its settings. Nothing is computed or written."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from lucid.backend import Array
from lucid.errors import CheckpointError, ConfigError
from lucid.training.attempts import read_attempts
from lucid.training.checkpoints.checkpoint import TrainingState
from lucid.training.checkpoints.store import CheckpointStore
from lucid.training.config import RunConfig, from_dict
from lucid.training.config.effects import settings_of_results
from lucid.training.corpora import evaluation_settings
from lucid.training.log.metrics import Entry, log_of

# By what runs can be compared.
Progress = Literal["steps", "tokens", "hours"]
PROGRESS: tuple[Progress, ...] = get_args(Progress)


@dataclass(frozen=True)
class LoggedRun:
    """A run in a folder, which may still train, or may be a copy.

    `config` and `ranks` are those of the newest attempt, or of the newest checkpoint if an earlier version of lucid
    trained; None if they are not known. `state` is that of the newest checkpoint, None if none can be read.
    """

    folder: Path
    entries: list[Entry]
    config: RunConfig | None = None
    ranks: int | None = None
    state: TrainingState | None = None

    @classmethod
    def of(cls, folder: Path) -> "LoggedRun":
        """Return the run in `folder`. Raises `DataError` if its log is not there or cannot be read."""
        entries = log_of(folder)
        attempts, state = [], None
        with suppress(OSError):
            attempts = read_attempts(folder)
        with suppress(CheckpointError):
            state = CheckpointStore(folder / "checkpoints").newest_state()
        ranks: int | None
        if attempts:
            settings, ranks = attempts[-1].config, len(attempts[-1].hosts)
        elif state is not None:
            settings, ranks = state.config, state.ranks
        else:
            return cls(folder, entries)
        try:
            return cls(folder, entries, from_dict(settings), ranks, state)
        except ConfigError:  # of a later version
            return cls(folder, entries, None, ranks, state)

    @cached_property
    def training(self) -> list[Entry]:
        """The lines about training, by rising step."""
        by_step = {entry["step"]: entry for entry in self.entries if entry.get("mlm_loss") is not None}
        return [by_step[step] for step in sorted(by_step)]

    def points(self, key: str) -> tuple[Array, Array]:
        """Return the steps with a value of `key`, rising, and the values: float64 [points] each."""
        by_step = {entry["step"]: entry[key] for entry in self.entries if entry.get(key) is not None}
        steps = sorted(by_step)
        return np.array(steps, np.float64), np.array([by_step[step] for step in steps], np.float64)

    def keys(self, prefix: str) -> list[str]:
        """Return the keys of the log that begin with `prefix`, in alphabetical order."""
        return sorted({key for entry in self.entries for key in entry if key.startswith(prefix)})

    @property
    def restarts(self) -> list[int]:
        """The steps of the last lines before another attempt went on."""
        pairs = zip(self.entries, self.entries[1:], strict=False)
        return [one["step"] for one, next_ in pairs if one.get("attempt") != next_.get("attempt")]

    @property
    def skips(self) -> list[int]:
        """The steps of the lines before which steps were skipped, because their gradients were not finite."""
        steps, skipped = self.points("skipped_steps")
        return [int(step) for step in steps[np.diff(skipped, prepend=0) > 0]]

    def knows(self, by: Progress) -> bool:
        """Return whether the log has what `at` needs."""
        return by == "steps" or self._progress(by) is not None

    def at(self, by: Progress, steps: Array | Sequence[int]) -> Array:
        """Return how many steps, tokens, or hours of training the run had behind it at these steps: float64 [points].

        Hours are those of steps alone, in all attempts, without evaluations, checkpoints and pauses. Between two lines
        of the log the values are interpolated.
        """
        steps = np.asarray(steps, np.float64)
        if by == "steps":
            return steps
        found = self._progress(by)
        if found is None:
            raise ValueError(f"the log of {self.folder} does not know {by}")
        return np.interp(steps, *found)

    def _progress(self, by: Progress) -> tuple[Array, Array] | None:
        """Return steps, and the tokens or hours up to each, float64 [lines + 1]; None if a line lacks what it takes."""
        names = {"tokens": ("tokens",), "hours": ("samples", "sequences_per_second")}[by]
        lines = self.training
        if not lines or any(not line.get(name) or line[name] < 0 for line in lines for name in names):
            return None
        steps, first, *speeds = (np.array([line[name] for line in lines], np.float64) for name in ("step", *names))
        steps, first = _from_the_start(steps), _from_the_start(first)
        if np.any(np.diff(first) < 0):
            return None
        if by == "tokens":
            return steps, first
        hours = np.cumsum(np.diff(first) / speeds[0], dtype=np.float64) / 3600
        hours = np.concatenate([[0.0], hours])
        if self.state is not None and self.config is not None and self.config.branch_from is not None:
            # The time of the run that it branches from.
            hours += max(0.0, self.state.training_seconds / 3600 - np.interp(self.state.step, steps, hours))
        return steps, hours

    @property
    def masking(self) -> str:
        """How the masks of training differ from those of evaluations, in words; "" if not, or if it is not known."""
        if self.config is None:
            return ""
        data, held_out, rate = self.config.data, evaluation_settings(self.config.data), self.config.masking_rate
        differences = []
        if rate.changes or rate.first != held_out.mlm_probability:
            rates = f"{100 * rate.first:.3g}% to " * rate.changes + f"{100 * rate.last:.3g}%"
            differences.append(f"{rates} of the tokens, evaluation {100 * held_out.mlm_probability:.3g}%")
        if data.whole_word_mask != held_out.whole_word_mask:
            differences.append("whole words, evaluation single tokens")
        ours, theirs = (
            (each.mask_replace_probability, each.random_replace_probability, each.max_predictions)
            for each in (data, held_out)
        )
        if ours != theirs and not differences:
            differences.append("by other rules than evaluation")
        return f"training masks {', and '.join(differences)}" if differences else ""


def _from_the_start(values: Array) -> Array:
    """Put the value before the first line in front of the values of lines, which are about equally far apart."""
    step = values[1] - values[0] if len(values) > 1 else values[0]
    return np.concatenate([[max(0.0, values[0] - step)], values])


def names_of(runs: Sequence[LoggedRun]) -> list[str]:
    """Return a name for each run: of its folder, or the whole path where several have that name."""
    names = [run.folder.name or str(run.folder) for run in runs]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, runs, strict=True)]


def differing_settings(runs: Sequence[LoggedRun]) -> list[dict[str, Any]]:
    """Return for each run the settings that are not the same in all runs, by dotted key; {} if none are known.

    Settings count that have an effect on the result or on the speed, and the number of `ranks`.
    """
    known = [_settings(run) for run in runs]
    compared = [settings for settings in known if settings]
    keys = [key for key in dict.fromkeys(key for settings in compared for key in settings) if _differ(key, compared)]
    return [{key: settings[key] for key in keys if key in settings} for settings in known]


def _settings(run: LoggedRun) -> dict[str, Any]:
    ranks = {} if run.ranks is None else {"ranks": run.ranks}
    return {} if run.config is None else {**settings_of_results(run.config), **ranks}


def _differ(key: str, compared: Sequence[dict[str, Any]]) -> bool:
    return len({json.dumps(settings.get(key)) for settings in compared}) > 1
