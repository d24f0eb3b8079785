"""Rules about single steps: those that stand out from the steps around them, and those that were skipped."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lucid.backend import Array
from lucid.training.explanations.curve import Curve
from lucid.training.explanations.facts import Facts
from lucid.training.explanations.finding import Finding

# The lines before a spike, and those after it, that say what is usual.
_AROUND = 10


@dataclass(frozen=True)
class Spike:
    """Steps `first` to `last`: their line of the log has a `value` of the metric `name` far above its `usual` one."""

    first: int
    last: int
    name: str
    value: float
    usual: float

    @property
    def where(self) -> str:
        """The steps in words."""
        return f"steps {self.first:,} to {self.last:,}" if self.first < self.last else f"step {self.last:,}"

    @property
    def metric(self) -> str:
        """The metric in words."""
        return {"mlm_loss": "MLM loss", "gradient_norm": "gradient norm"}[self.name]


def skipped(curve: Curve, facts: Facts) -> Iterator[Finding]:
    """Find steps that were skipped because the gradient was not finite."""
    counts = curve.training["skipped_steps"]
    if not len(counts) or not counts[-1] > 0:
        return
    last = int(curve.training.step[np.flatnonzero(counts == counts[-1])[0]])
    yield Finding(
        "skipped",
        f"{int(counts[-1]):,} of {curve.last:,} steps were skipped because the gradient was not finite, the last one "
        f"by step {last:,}",
        "A few are harmless. If they go on, lower optimizer.learning_rate, or train in float32",
    )


def spiking(curve: Curve, facts: Facts) -> Iterator[Finding]:
    """Find the largest spike, and say how many there are."""
    found = spikes(curve)
    if not found:
        return
    largest = max(found, key=lambda spike: abs(spike.value - spike.usual))
    many = f"{len(found)} lines of the log stand out, most of all " if len(found) > 1 else ""
    yield Finding(
        "spikes",
        f"{many}{largest.where}: {largest.metric} {largest.value:.3f} where {largest.usual:.3f} is usual",
        "`lucid explain RUN --rows 3` shows the samples of these steps that fit worst; a lower "
        "optimizer.max_gradient_norm limits what they do",
    )


def spikes(curve: Curve) -> list[Spike]:
    """Return the lines whose MLM loss or gradient norm stands out above the lines around it, in their order.

    Each is compared with the median of ten lines before and ten after it (five, at the end), in robust deviations:
    1.4826 times the median absolute one, but no less than 1% of the median. The loss stands out by 6 of them; the norm
    by 12, and at three times its usual value; both together by 4 and by 8. The loss is a mean over the steps since the
    line before; the norm is the last step's. The first quarter of the lines is not judged.
    """
    steps = curve.training.step
    loss, norm = (_StandingOut(curve.training[name]) for name in ("mlm_loss", "gradient_norm"))
    by_norm = (norm.deviations > 12) & (norm.values > 3 * norm.usual)
    by_loss = (loss.deviations > 6) | ((loss.deviations > 4) & (norm.deviations > 8)) & ~by_norm
    found = []
    for line in np.flatnonzero(by_loss | by_norm).tolist():
        name, values, first = "mlm_loss", loss, int(steps[line - 1]) + 1
        if not by_loss[line]:
            name, values, first = "gradient_norm", norm, int(steps[line])
        found.append(Spike(first, int(steps[line]), name, float(values.values[line]), float(values.usual[line])))
    return found


class _StandingOut:
    """How far each of some `values` stands out from the `usual` one around it, in robust `deviations`."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self.usual = self.deviations = np.full(len(values), np.nan)
        judged = slice(max(_AROUND, len(values) // 4), len(values) - _AROUND // 2)
        if judged.stop <= judged.start:
            return
        padded = np.concatenate([np.full(_AROUND, np.nan), values, np.full(_AROUND, np.nan)])
        around = np.delete(np.lib.stride_tricks.sliding_window_view(padded, 2 * _AROUND + 1), _AROUND, axis=1)
        usual = _median(around)
        deviation = 1.4826 * _median(np.abs(around - usual[:, None]))
        self.usual = usual
        self.deviations = self.deviations.copy()
        self.deviations[judged] = ((values - usual) / np.maximum(deviation, 0.01 * np.abs(usual)))[judged]


def _median(rows: Array) -> Array:
    """Return the median of the numbers in each row, NaN for a row without numbers."""
    numbers = np.sort(rows, axis=1)  # NaN comes last
    count = np.isfinite(numbers).sum(axis=1)
    row, middle = np.arange(len(rows)), np.maximum(count - 1, 0)
    return (numbers[row, middle // 2] + numbers[row, np.minimum(middle - middle // 2, middle)]) / 2
