"""Replays steps of a run: the training loop itself takes them again, from a checkpoint, with the settings of the run.

Under the exact reduction the same bits come out on any number of ranks that it allows. Nothing of the run is changed.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lucid.analysis.verification.comparison import Comparison, Replayed, compare
from lucid.analysis.verification.replay import Replay, find_replay
from lucid.distributed import ProcessGroup, all_or_none, run_on_first_rank
from lucid.training.config import only_steps
from lucid.training.log.metrics import METRICS_FILE, Entry
from lucid.training.numerical_environment import limit_threads
from lucid.training.reports import Reports
from lucid.training.setup import communicator_of, open_run
from lucid.training.trainer import Trainer


def verify(run: Path, steps: str | None, overrides: Sequence[str], group: ProcessGroup) -> tuple[Replay, Comparison]:
    """Find steps of a run that can be replayed, and replay them, up to the first checkpoint that differs.

    All ranks of `group` call this; a `LucidError` is raised on all. The first rank compares: on the others the result
    has no difference.
    """
    text = run_on_first_rank(group, lambda: find_replay(run, steps, overrides, group.size).as_json())
    replay = Replay.from_json(text)
    return replay, _compared(replay, group)


def _compared(replay: Replay, group: ProcessGroup) -> Comparison:
    """Replay the steps on all ranks of `group`, and compare at each checkpoint."""
    limit_threads(replay.threads)
    log = _Log()
    run = open_run(only_steps(replay.config, keeps_log=True), communicator_of(replay.config, group), at=replay.first)
    trainer = Trainer(run, log)
    comparison = Comparison(replay.first)
    for step, folder in replay.checkpoints.items():
        state = trainer.replay(step, step in replay.reported)
        replayed = Replayed(run.model.state_dict(), run.optimizer.moments(), state, log.entries)
        metrics = replay.config.run_folder / METRICS_FILE
        action = partial(compare, replayed, folder, metrics) if run.is_first else partial(Comparison, step)
        comparison = all_or_none(run.communicator, action)
        if run.communicator.all_reduce_scalar(not comparison.is_same) > 0:
            break
    return comparison


class _Log(Reports):
    """Keeps what a replay would log."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def training(self, step: int, metrics: dict[str, float], *rest: Any) -> None:
        self.entries.append({"step": step, **metrics})
