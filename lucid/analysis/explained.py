"""Explains a run after it has trained, from its folder alone: what its curve says, its spikes, the rows behind them."""

import heapq
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lucid.analysis.samples import Losses, Samples, row_losses
from lucid.errors import CheckpointError, DataError, LucidError
from lucid.models import BERTForPreTraining
from lucid.training.checkpoints.checkpoint import open_checkpoint, read_state
from lucid.training.corpora import open_mixture
from lucid.training.counts.kept import KeptCounts
from lucid.training.end import expected_end
from lucid.training.explanations.curve import Curve
from lucid.training.explanations.explainer import explain
from lucid.training.explanations.facts import Facts, facts_of
from lucid.training.explanations.finding import Finding
from lucid.training.explanations.steps import Spike, spikes
from lucid.training.formatting import count
from lucid.training.history import History
from lucid.training.log.metrics import METRICS_FILE, damaged_lines, log_of

# Rows of a batch whose losses are computed at once.
_ROWS = 32


@dataclass(frozen=True)
class Explained:
    """What the log of a run says. `remarks` name what was not at hand, so that rules which need it were left out."""

    curve: Curve
    findings: list[Finding]
    spikes: list[Spike]
    remarks: list[str]


def explained(folder: Path, overrides: Sequence[str] = ()) -> Explained:
    """Explain the run in `folder`, of which only the log has to be there.

    `overrides` are settings such as `data.path=FOLDER`, in case the corpus has moved. Raises `DataError` if there is no
    log, or nothing in it, and `ConfigError` if settings are overridden that cannot be.
    """
    entries = log_of(folder)
    if not entries:
        raise DataError(f"{folder / METRICS_FILE} has no line that can be read: has the run logged a step yet?")
    facts, remarks = _facts(folder, overrides)
    curve = Curve(entries)
    return Explained(curve, explain(entries, facts), spikes(curve), [*_damage(folder / METRICS_FILE), *remarks])


def _damage(log: Path) -> Iterator[str]:
    """Yield a sentence about lines of a log that cannot be read, if there are any."""
    with suppress(OSError):
        if damaged := damaged_lines(log):
            others = f" (and {count(len(damaged) - 1, 'line')} after it)" if len(damaged) > 1 else ""
            yield f"{log}: line {damaged[0]:,}{others} cannot be read and is left out"


def _facts(folder: Path, overrides: Sequence[str]) -> tuple[Facts, list[str]]:
    if not any((folder / "checkpoints").glob("*")):
        return Facts(), [f"{folder} has no checkpoint: rules that need settings or corpora of the run are left out"]
    try:
        history = History.of(folder, overrides)
    except CheckpointError as error:
        return Facts(), [f"rules that need settings or corpora of the run are left out: {error}"]
    config = history.stretches[-1].config
    try:
        facts, remarks = facts_of(config, open_mixture(config), KeptCounts(folder, only_read=True)), []
    except LucidError as error:
        facts, remarks = Facts.of(config), [f"rules that need the corpora of the run are left out: {error}"]
    state = read_state(history.checkpoints[max(history.checkpoints)])
    # A run that has ended early has no second half to wait for.
    end = expected_end(config, state.step, state.training_seconds, state.best)
    return replace(facts, steps=end), [*history.messages, *remarks]


def worst_rows(history: History, spike: Spike, most: int) -> Iterator[tuple[int, int, Losses]]:
    """Yield step, row and losses of the `most` rows in the steps of a spike that have the largest MLM loss a token.

    The losses are those at the newest checkpoint from before the spike, or else at the oldest one. Raises a
    `LucidError` if there is none, or if the corpora are not those of the run.
    """
    checkpoint = history.checkpoint_for(spike.first)
    model = BERTForPreTraining.read(open_checkpoint(history.checkpoints[checkpoint]).folder)[0]
    found = []
    for step in range(spike.first, spike.last + 1):
        stretch = history.at(step)
        samples, batch_size = Samples(stretch), stretch.config.train.global_batch
        for start in range(0, batch_size, _ROWS):
            rows = range(start, min(start + _ROWS, batch_size))
            losses = row_losses(model, samples.batch(step, rows))
            found += [(step, row, loss) for row, loss in zip(rows, losses, strict=True)]
    return iter(heapq.nlargest(most, found, key=lambda each: each[2].mlm / max(1, each[2].masked)))
