"""When a run ends: with its last step, with its time (`train.max_hours`), or with its patience (`train.patience`)."""

from lucid.training.checkpoints.best import Best
from lucid.training.config import RunConfig
from lucid.training.schedule import schedule_of


def patience_has_ended(config: RunConfig, best: Best | None) -> bool:
    """Return whether too many evaluations since the `best` have brought no smaller held-out loss."""
    patience = config.train.patience
    return patience is not None and best is not None and best.since >= patience


def expected_end(config: RunConfig, step: int, training_seconds: float, best: Best | None) -> int:
    """Return the step at which a run ends that has taken `step` steps: that one, if it has ended.

    `training_seconds` is the time of these steps. With `train.max_hours` the steps to come are expected to take as long
    as those so far.
    """
    steps, progress = config.train.steps, schedule_of(config).progress(step, training_seconds)
    if progress >= steps or patience_has_ended(config, best):
        return step
    return round(steps * step / progress) if progress else steps
