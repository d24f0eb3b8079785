"""The learning rate as a pure function of the progress of a run, which its steps and the clock determine."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """Linear warm-up to `peak`, then a decay that ends with the rate `final` after `steps`.

    With `max_seconds` the schedule ends with that time as well, as in Geiping & Goldstein, "Cramming", 2022.
    """

    peak: float
    warmup_steps: int
    steps: int
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
        return self._after_warmup(progress)

    @abstractmethod
    def _after_warmup(self, progress: float) -> float: ...


@dataclass(frozen=True, kw_only=True)
class WarmupPolynomialDecay(Schedule):
    """Warm-up, then polynomial decay from its end to the last step.

    Devlin et al. (2018) decay linearly (power 1) over all steps; counting from the end of warm-up avoids the jump
    there. NVIDIA's LAMB recipe uses power 0.5.
    """

    power: float = 1.0

    def _after_warmup(self, progress: float) -> float:
        left = (self.steps - progress) / max(1, self.steps - self.warmup_steps)
        return self.final + (self.peak - self.final) * max(0.0, left) ** self.power


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(Schedule):
    """Warm-up, a stretch at the peak, then decay over the last `decay_steps`; 0: the run ends at the peak.

    Up to the decay, the rate does not depend on `steps`, so a run can be made longer, or decayed from any of its
    checkpoints (Hu et al., "MiniCPM", 2024). The decay has the form 1 - sqrt, which ended lower than a linear one in
    Hägele et al., "Scaling laws and compute-optimal training beyond fixed training durations", 2024.
    """

    decay_steps: int

    def _after_warmup(self, progress: float) -> float:
        decayed = progress - (self.steps - self.decay_steps)
        if decayed <= 0:
            return self.peak
        return self.final + (self.peak - self.final) * (1 - math.sqrt(decayed / self.decay_steps))
