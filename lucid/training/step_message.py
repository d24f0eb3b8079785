"""The one small message of each step, which ranks send a step ahead."""

from typing import NamedTuple

import numpy as np

from lucid.distributed import Communicator
from lucid.training.micro_batches import LocalBatch


class StepControl(NamedTuple):
    """What all ranks know of a step before they take it; `stop`: whether any rank was asked to stop."""

    masked_tokens: float
    pairs: float
    seconds: float
    stop: bool


class ControlMessage:
    """Sums the label counts and stop flags of all ranks for the next step, while the present one runs.

    `seconds` is the training time so far. The first rank's counts, so that all ranks follow one clock.
    """

    def __init__(self, communicator: Communicator, batch: LocalBatch, seconds: float, stop: bool) -> None:
        clock = seconds if communicator.rank == 0 else 0.0
        self._values = np.array([batch.masked_tokens, batch.pairs, clock, stop], np.float64)
        self._work = communicator.all_reduce(self._values)

    def wait(self) -> StepControl:
        self._work.wait()
        masked_tokens, pairs, seconds, stop = self._values.tolist()
        return StepControl(masked_tokens, pairs, seconds, stop > 0)
