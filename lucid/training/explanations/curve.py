"""What a run is explained from: its log as arrays, and what its settings and corpora say."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lucid.backend import Array
from lucid.training.config import RunConfig
from lucid.training.metrics import Entry


@dataclass(frozen=True)
class CorpusFacts:
    """What is known of a corpus. `repeated`: the share of its tokens in sentences that came before, None if not known.

    `unknown` is the share of [UNK] in its tokens. `tokens_per_word` is None in corpora of earlier versions.
    """

    name: str
    unknown: float
    tokens_per_word: float | None
    repeated: float | None


@dataclass(frozen=True)
class Facts:
    """What the settings and corpora of a run say; None or empty where they are not at hand."""

    steps: int | None = None
    warmup_steps: int | None = None
    vocab_size: int | None = None
    is_new: bool = True
    corpora: tuple[CorpusFacts, ...] = ()

    @classmethod
    def of(cls, config: RunConfig, corpora: Sequence[CorpusFacts] = ()) -> "Facts":
        """Return the facts of a run with these settings; it is new if it starts from random weights."""
        is_new = not (config.initial_model or config.initial_checkpoint or config.branch_from)
        optimizer = config.optimizer
        return cls(config.train.steps, optimizer.warmup_steps, config.model.vocab_size, is_new, tuple(corpora))


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
