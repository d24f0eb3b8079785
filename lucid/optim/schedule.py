"""The learning rate as a pure function of how far the run is: of its steps, or of its time where that is limited."""

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

    def place(self, step: int, seconds: float) -> float:
        """Return how far a run is, in steps, that has taken `step` steps in `seconds`.

        These steps, or as many as the share of `max_seconds` that is over, if that is more; at `steps` it ends.
        """
        return max(step, self.steps * seconds / self.max_seconds)

    def learning_rate(self, place: float) -> float:
        """Return the rate of the update at this place (0 <= place < steps): that after `place` earlier ones."""
        if place < self.warmup_steps:
            return self.peak * (place + 1) / (self.warmup_steps + 1)
        left = (self.steps - place) / max(1, self.steps - self.warmup_steps)
        return self.final + (self.peak - self.final) * max(0.0, left) ** self.power
