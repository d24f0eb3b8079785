"""How far two models differ on the test examples, with the paired bootstrap.

Test examples are drawn again, with replacement, and each drawing gives the difference of the two models on the *same*
examples: Efron & Tibshirani, "An introduction to the bootstrap", 1993, chapter 13; Koehn, "Statistical significance
tests for machine translation evaluation", 2004. The interval says what other test examples would change. It says
nothing about other training examples; the seeds show how much the rest of the training is chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lucid.backend import Array
from lucid.finetuning.metrics import Metric

_RESAMPLES = 2000
# Numbers of drawn examples that are held at once.
_AT_ONCE = 1 << 21
CONFIDENCE = 0.95
# With fewer test examples the intervals are too short: with one, 43% of those for two equal models exclude 0.
ENOUGH = 20


@dataclass(frozen=True)
class Difference:
    """The difference of a metric between a model and the first, from -1 to 1, and the ends of its interval."""

    mean: float
    low: float
    high: float

    def sentence(self, model: str, first: str, metric: str) -> str:
        """Return in words which of the models is better."""
        low, high = 100 * self.low, 100 * self.high
        if self.low <= 0 <= self.high:
            return (
                f"no difference between {model} and {first} can be seen: {100 * self.mean:+.1f} points of {metric} "
                f"({CONFIDENCE:.0%} interval {low:+.1f} to {high:+.1f})"
            )
        better, other = model, first
        if self.mean < 0:
            better, other, low, high = first, model, -high, -low
        return (
            f"{better} is better than {other} by {100 * abs(self.mean):.1f} points of "
            f"{metric} ({CONFIDENCE:.0%} interval {low:.1f} to {high:.1f})"
        )


def resampled_values(metrics: Sequence[Metric]) -> Array:
    """Return the values of metrics of the same examples, on the same drawings of these: float64 [metrics, drawings]."""
    examples = metrics[0].counts[0].shape[0]
    generator = np.random.default_rng(0)
    at_once = max(1, _AT_ONCE // examples)
    parts = []
    for start in range(0, _RESAMPLES, at_once):
        count = min(at_once, _RESAMPLES - start)
        drawn = generator.integers(0, examples, (count, examples)) + examples * np.arange(count)[:, None]
        weights = np.bincount(drawn.reshape(-1), minlength=count * examples).reshape(count, examples)
        parts.append([metric.resampled(weights.astype(np.float64)) for metric in metrics])
    return np.concatenate(parts, axis=1)


def difference(model: Metric, first: Metric, resampled: Array, resampled_first: Array) -> Difference:
    """Return the difference of the means over seeds, with the interval of the drawings' differences."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled - resampled_first, [tail, 1 - tail])
    return Difference(float(np.mean(model.of_seeds()) - np.mean(first.of_seeds())), float(low), float(high))
