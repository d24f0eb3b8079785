"""The learning rate as a pure function of the progress of a run, which its steps and the clock determine."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmupPolynomialDecay:
    """Linear warm-up to `peak`, then polynomial decay to `final` at `steps`, counted from the end of warm-up.

    Devlin et al. (2018) decay linearly (power 1) over all steps; counting from the end of warm-up avoids the jump
    there. NVIDIA's LAMB recipe uses power 0.5. With `max_seconds` the schedule ends with that time as well, as in
    Geiping & Goldstein, "Cramming", 2022.
    """

    peak: float
    warmup_steps: int
    steps: int
    power: float = 1.0
    final: float = 0.0
    max_seconds: float = math.inf

    def progress(self, step: int, seconds: float) -> float:
        """Return the progress of a run that has taken `step` steps in `seconds`: 0 at the start, `steps` at the end.

        With `max_seconds` the clock counts instead of the steps while it is further along. Progress is in steps and
        not in 0..1, so that the learning rate of a step is the same to the last bit with and without `max_seconds`.
        """
        return max(step, self.steps * seconds / self.max_seconds)

    def learning_rate(self, progress: float) -> float:
        """Return the learning rate of the update that follows `progress` (0 <= progress < steps)."""
        if progress < self.warmup_steps:
            return self.peak * (progress + 1) / (self.warmup_steps + 1)
        left = (self.steps - progress) / max(1, self.steps - self.warmup_steps)
        return self.final + (self.peak - self.final) * max(0.0, left) ** self.power
