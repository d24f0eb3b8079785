"""The fraction of the tokens that the steps of a run predict: constant, or linear from the first step to the last."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MaskingRate:
    """The rate of each of `steps` steps, from `first` to `last` in 0..1: a function of the step alone.

    Ankner et al., "Dynamic masking rate schedules for MLM pretraining", 2024, lower it linearly from 30% to 15%.
    """

    first: float
    last: float
    steps: int

    @classmethod
    def constant(cls, rate: float) -> "MaskingRate":
        return cls(rate, rate, 1)

    def at(self, step: int) -> float:
        """Return the rate of a step, counted from 0."""
        return self.first + (self.last - self.first) * step / max(1, self.steps - 1)

    @property
    def largest(self) -> float:
        return max(self.first, self.last)

    @property
    def mean(self) -> float:
        return (self.first + self.last) / 2

    @property
    def changes(self) -> bool:
        return self.first != self.last

    def __str__(self) -> str:
        """Return it as users write it, for messages."""
        return f"[{self.first:g}, {self.last:g}] over {self.steps:,} steps" if self.changes else f"{self.first:g}"
