"""What the losses of a run that is under way say about its end."""

from collections.abc import Iterator

import numpy as np

from lucid.analysis.prediction.loss_fit import FEWEST_POINTS, LEAST_SHARE, forecast
from lucid.cli.plan.line import Line
from lucid.training.config import RunConfig
from lucid.training.explanations.curve import Curve
from lucid.training.log.metrics import METRICS_FILE, log_of
from lucid.training.schedule import schedule_of


def loss_at_end(config: RunConfig, step: int) -> Iterator[Line]:
    """Yield what the metrics of a run at `step` say about the training loss of its last step; nothing without them."""
    end = config.train.steps
    if not 0 < step < end or not (config.run_folder / METRICS_FILE).is_file():
        return
    if config.train.max_hours is not None:
        yield "loss", "at the end: not known, because train.max_hours may end the run before train.steps"
        return
    if config.masking_rate.changes:
        yield "loss", "at the end: not known, because the masking rate changes, and the loss with it"
        return
    lines = Curve(log_of(config.run_folder)).training
    steps, losses, rates = lines.step, lines["loss"], lines["learning_rate"]
    used = (steps <= step) & np.isfinite(losses) & np.isfinite(rates)
    steps, losses, rates = steps[used], losses[used], rates[used]
    schedule = schedule_of(config)

    def rate(number: float) -> float:
        """The logged rate, because a run that is resumed may have had another schedule, and the planned one later."""
        return float(np.interp(number, steps, rates)) if number < steps[-1] else schedule.learning_rate(number)

    found = forecast(steps, losses, rate, end, config.optimizer.warmup_steps) if len(steps) else None
    if found is None:
        yield (
            "loss",
            f"at the end: too early to say; it takes {FEWEST_POINTS} lines of the log after twice the warm-up, and "
            f"{LEAST_SHARE:.0%} of the steps",
        )
        return
    yield (
        "loss",
        f"about {found.loss:.2f} in training at the end, with 90% probability from {found.low:.2f} to "
        f"{found.high:.2f}, by a power law of the steps that follows the learning rate",
    )
    yield (
        "",
        f"fitted to {found.points:,} lines of the log, steps {found.first:,} to {found.last:,}; it extrapolates from "
        f"{found.share:.0%} of the run",
    )
