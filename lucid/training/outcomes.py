"""Outcomes of steps: losses, the gradient norm, and whether a step was skipped.

On a GPU the host reads the outcome of a step only after it has launched the next one, so that it never waits for the
GPU without need.
"""

import math
from collections import deque
from dataclasses import dataclass

from lucid.backend import CPU
from lucid.distributed import agreed, wait_for_device
from lucid.errors import TrainingError, some
from lucid.gpu_async import HostCopy
from lucid.optim import not_finite
from lucid.training.log.norms_by_layer import NormsByLayer
from lucid.training.log.window import Window
from lucid.training.run_on_rank import Run


@dataclass(frozen=True)
class Outcome:
    """The outcome of a step: `sums` are those of `MicroBatches.gradients`, followed by the gradient norm.

    `masked_tokens` and `pairs` are counts of this rank's labels; `has_labels` says whether any rank had some. `squares`
    are a copy by `NormsByLayer`, if the log reports this step.
    """

    step: int
    learning_rate: float
    has_labels: bool
    masked_tokens: int
    pairs: int
    sums: HostCopy
    squares: HostCopy | None = None


class Outcomes:
    """The outcomes of a run's steps. Settled ones are counted in `window` and in the run.

    All ranks have the same gradient norms, so they find the same errors, which are marked `agreed`.
    """

    def __init__(self, run: Run, window: Window, norms: NormsByLayer) -> None:
        self._run, self._window, self._norms = run, window, norms
        self._pending: deque[Outcome] = deque()
        self._steps_ahead = 0 if run.model.device == CPU else 1
        # Of the last settled step, by their names in the log.
        self.metrics: dict[str, float] = {}

    def add(self, outcome: Outcome) -> None:
        """Take the outcome of a step, and settle those that the device has finished meanwhile."""
        self._pending.append(outcome)
        self._settle(self._steps_ahead)

    def settle(self) -> None:
        """Wait for all outcomes. Raises `TrainingError` if gradients are zero, or were too often not finite."""
        self._settle(0)

    def _settle(self, ahead: int) -> None:
        """Settle all outcomes but the last `ahead`."""
        run = self._run
        while len(self._pending) > ahead:
            outcome = self._pending.popleft()
            if run.model.device != CPU:
                wait_for_device(run.communicator, outcome.sums)
            *sums, norm = outcome.sums.values.tolist()
            if norm == 0 and outcome.has_labels:
                message = (
                    f"step {outcome.step}: the gradient is exactly 0 although the batch has labels, so backward has "
                    "not done its work; please report this, and resume from the last checkpoint"
                )
                raise agreed(TrainingError(message))
            self._window.add(sums, outcome.masked_tokens, outcome.pairs)
            run.skipped_in_a_row = 0 if math.isfinite(norm) else run.skipped_in_a_row + 1
            if run.skipped_in_a_row:
                self._count_skipped(outcome.step)
            self.metrics = {
                "gradient_norm": norm,
                "learning_rate": outcome.learning_rate,
                "skipped_steps": run.skipped_steps,
            }
            if outcome.squares is not None:
                outcome.squares.synchronize()
                self.metrics |= self._norms.metrics(outcome.squares.values)

    def _count_skipped(self, step: int) -> None:
        run = self._run
        run.skipped_steps += 1
        if run.skipped_in_a_row > run.config.train.max_skipped_steps:
            # On a GPU the buffer may already hold the finite gradients of the next step.
            names = not_finite(run.ddp.partition)
            last = f" (last in {some(names)})" if names else ""
            message = (
                f"step {step}: the gradient was not finite {run.skipped_in_a_row} times in a row{last}: lower "
                "optimizer.learning_rate, or lengthen the warm-up, and resume from the last checkpoint"
            )
            raise agreed(TrainingError(message))
