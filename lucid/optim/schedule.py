"""The learning rate as a pure function of the step."""

from dataclasses import dataclass


@dataclass(frozen=True)
class WarmupPolynomialDecay:
    """Linear warm-up to `peak`, then polynomial decay to 0 at `steps`, counted from the end of warm-up.

    Devlin et al. (2018) decay linearly (power 1) over all steps; counting from the end of warm-up avoids the jump
    there. NVIDIA's LAMB recipe uses power 0.5.
    """

    peak: float
    warmup_steps: int
    steps: int
    power: float = 1.0

    def learning_rate(self, step: int) -> float:
        """Return the rate of the update that follows `step` earlier ones (0 <= step < steps)."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        left = (self.steps - step) / max(1, self.steps - self.warmup_steps)
        return self.peak * max(0.0, left) ** self.power
