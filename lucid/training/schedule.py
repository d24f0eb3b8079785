"""The schedule of the learning rate that the settings of a run describe."""

import math

from lucid.optim import Schedule, WarmupPolynomialDecay, WarmupStableDecay
from lucid.training.config import RunConfig


def schedule_of(config: RunConfig) -> Schedule:
    """Return the schedule of a run."""
    optimizer, train = config.optimizer, config.train
    peak, warmup_steps, final = optimizer.learning_rate, optimizer.warmup_steps, optimizer.final_learning_rate
    max_seconds = math.inf if train.max_hours is None else 3600 * train.max_hours
    if optimizer.decay_steps is not None:
        return WarmupStableDecay(
            peak=peak,
            warmup_steps=warmup_steps,
            steps=train.steps,
            final=final,
            max_seconds=max_seconds,
            decay_steps=optimizer.decay_steps,
        )
    return WarmupPolynomialDecay(
        peak=peak,
        warmup_steps=warmup_steps,
        steps=train.steps,
        final=final,
        max_seconds=max_seconds,
        power=optimizer.decay_power,
    )
