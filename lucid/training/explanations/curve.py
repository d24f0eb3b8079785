"""The log of a run as arrays, by line."""

from collections.abc import Sequence

import numpy as np

from lucid.backend import Array
from lucid.training.log.metrics import Entry


class Curve:
    """The metrics of a log, float64 arrays by their names, NaN where an entry has none.

    `training` has the lines of training, `held_out` those of evaluations of all training corpora together; both by
    rising `step`. Of several entries of a kind with one step the last one counts.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.training = _Lines(entries, "mlm_loss")
        self.held_out = _Lines(entries, "held_out_mlm_loss")

    @property
    def last(self) -> int:
        """The last step that the log has, 0 if it has none."""
        steps = np.concatenate([self.training.step, self.held_out.step])
        return int(steps.max()) if len(steps) else 0

    def training_loss_at(self, step: int) -> float:
        """Return the median training loss of the lines in the tenth of the steps up to this one."""
        near = (self.training.step <= step) & (self.training.step > step - max(1, self.last // 10))
        return middle(self.training["mlm_loss"][near])


class _Lines:
    """Lines of one kind."""

    def __init__(self, entries: Sequence[Entry], key: str) -> None:
        by_step = {entry["step"]: entry for entry in entries if key in entry}
        self._entries = [by_step[step] for step in sorted(by_step)]
        self.step = np.array(sorted(by_step), np.int64)

    def __len__(self) -> int:
        return len(self.step)

    def __getitem__(self, name: str) -> Array:
        return np.array([_number(entry.get(name)) for entry in self._entries])

    def last_value(self, name: str) -> float:
        """Return the value in the last line, NaN if there is none."""
        return _number(self._entries[-1].get(name)) if self._entries else np.nan


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) < np.inf else np.nan


def finite(values: Array) -> Array:
    """Return the values that are numbers."""
    return values[np.isfinite(values)]


def middle(values: Array) -> float:
    """Return the median of the values that are numbers, NaN if none is."""
    numbers = finite(values)
    return float(np.median(numbers)) if len(numbers) else np.nan
