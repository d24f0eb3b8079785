"""The best evaluation of a run so far, which each of its checkpoints notes: for `train.keep_best` and `train.patience`.

All ranks evaluate together and get the same sums, so each finds the best by itself, without a message.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import Field

from lucid.distributed import Communicator

_Step = Annotated[int, Field(ge=0, lt=2**62)]


@dataclass(frozen=True)
class Best:
    """The step with the least held-out loss of a run so far.

    `loss` (nats) is the loss of all corpora in training together (`Evaluations.loss`), measured on the held-out samples
    whose hash is `samples`. `evaluated` is the step of the last evaluation. `since` counts the evaluations after the
    best one.
    """

    step: _Step
    loss: Annotated[float, Field(allow_inf_nan=False)]
    evaluated: _Step
    since: _Step
    samples: str


def best_after(best: Best | None, step: int, loss: float, samples: str) -> Best | None:
    """Return the best after an evaluation of `step`, which may repeat the last one: that counts once.

    A loss that is NaN, or equal to the best, is no improvement. Losses on other samples are not compared. There is no
    best, and no evaluation counts, until a loss is finite.
    """
    if best is None or best.samples != samples:
        return Best(step, loss, step, 0, samples) if math.isfinite(loss) else None
    if step <= best.evaluated:
        return best
    if loss < best.loss:
        return Best(step, loss, step, 0, samples)
    return replace(best, evaluated=step, since=best.since + 1)


def of_first_rank(communicator: Communicator, best: Best | None, samples: str) -> Best | None:
    """Return the first rank's best, of losses on `samples`. All ranks call this."""
    numbers = np.array([best.step, best.loss, best.evaluated, best.since] if best else [math.nan] * 4, np.float64)
    communicator.broadcast(numbers)
    step, loss, evaluated, since = numbers.tolist()
    return None if math.isnan(step) else Best(int(step), loss, int(evaluated), int(since), samples)
