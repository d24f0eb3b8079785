"""Extrapolates the training loss of a run that is under way to its last step, with an interval.

The loss at step s is fitted by

    L + a (T(s) + t0)**-b + c r(s)

where r(s) is the learning rate relative to its peak, and T(s) the sum of r over the steps so far: the distance that
training has gone, in steps at the peak. A power law with an offset describes losses at a constant rate (Hestness et
al., "Deep learning scaling is predictable, empirically", 2017). While the rate falls, T grows more slowly, and the
noise of the updates, which is about proportional to the rate, leaves the loss; without these two, a run with a decay
ends lower than a fit says (Tissue et al., "Scaling law with learning rate annealing", 2024).

For given b and t0 the loss is linear in L, a and c. So the fit tries a grid of b and t0, and solves for the others;
none of them may be negative. The interval comes from a block bootstrap: residuals of adjacent points are drawn
together, the fit is repeated, and the noise of a point is added.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lucid.backend import Array

# Fewer points than this, or a shorter part of the run, say too little about its end.
FEWEST_POINTS, LEAST_SHARE = 16, 0.2
# Points before warm-up has ended, and for as long again, are about the start alone.
_WARM_UPS = 2
_EXPONENTS = np.array([0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0])
# t0, relative to the present T.
_OFFSETS = np.array([0.0, 0.02, 0.1, 0.3, 1.0, 3.0])
_REPETITIONS, _BLOCK = 200, 4
_PERCENTILES = (5, 95)


@dataclass(frozen=True)
class LossForecast:
    """The training loss that a fit expects at the last step: most likely, and from `low` to `high` in 90% of cases.

    `points` were fitted, from step `first` to step `last`, and `share` is the part of the run that they reach.
    """

    loss: float
    low: float
    high: float
    points: int
    first: int
    last: int
    share: float


def forecast(
    steps: Array, losses: Array, rate: Callable[[float], float], end: int, warmup_steps: int
) -> LossForecast | None:
    """Return what the losses [N] at `steps` [N] (rising) say about the loss at step `end`; None if that is too little.

    `rate(step)` is the learning rate of a step, up to `end`.
    """
    used = (steps > _WARM_UPS * warmup_steps) & np.isfinite(losses)
    x, y = steps[used].astype(int), losses[used].astype(float)
    if len(x) < FEWEST_POINTS or x[-1] < LEAST_SHARE * end:
        return None
    rates = np.array([rate(step) for step in range(end)])
    rates = rates / max(rates.max(), math.ulp(0.0))
    distance = np.cumsum(rates)
    at = np.append(x, end) - 1
    candidates = [
        np.stack([np.ones(len(at)), (distance[at] + offset * distance[x[-1] - 1]) ** -exponent, rates[at]], axis=1)
        for exponent in _EXPONENTS
        for offset in _OFFSETS
    ]
    fits = [
        _Fit.of(candidate[:-1, columns], candidate[-1, columns]) for candidate in candidates for columns in _COLUMNS
    ]
    fitted, residuals, loss = _best(fits, y[:, None])
    random = np.random.default_rng(0)
    starts = random.integers(0, len(y) - _BLOCK + 1, (_REPETITIONS, -(-len(y) // _BLOCK)))
    drawn = (starts[:, :, None] + np.arange(_BLOCK)).reshape(_REPETITIONS, -1)[:, : len(y)]
    noise = residuals[:, 0] * math.sqrt(len(y) / (len(y) - 5))
    _, _, ends = _best(fits, fitted + noise[drawn].T)
    low, high = np.percentile(ends + random.choice(noise, _REPETITIONS), _PERCENTILES)
    return LossForecast(
        float(loss[0]), float(min(low, loss[0])), float(max(high, loss[0])), len(x), int(x[0]), int(x[-1]), x[-1] / end
    )


# With the term of the rate, and without, which is the best fit if its factor would be negative.
_COLUMNS = ([0, 1, 2], [0, 1])


@dataclass(frozen=True)
class _Fit:
    """The fit of L, a and c for one pair of b and t0: `solve` gives them, `at_end` has their terms at the end."""

    terms: Array
    solve: Array
    at_end: Array

    @classmethod
    def of(cls, terms: Array, at_end: Array) -> "_Fit":
        scale = np.abs(terms).max(axis=0)
        return cls(terms, np.linalg.pinv(terms / scale) / scale[:, None], at_end)


def _best(fits: list[_Fit], y: Array) -> tuple[Array, Array, Array]:
    """Return the fitted losses [N, R], the residuals [N, R] and the loss at the end [R] of the best fit of each column.

    `y` is [N, R]. A constant, which always exists, is the fit of last resort.
    """
    fitted = np.broadcast_to(y.mean(axis=0), y.shape).copy()
    least, ends = ((y - fitted) ** 2).sum(axis=0), fitted[0].copy()
    for fit in fits:
        factors = fit.solve @ y
        values = fit.terms @ factors
        error = ((y - values) ** 2).sum(axis=0)
        better = (factors >= 0).all(axis=0) & (error < least)
        fitted[:, better], least[better] = values[:, better], error[better]
        ends[better] = (fit.at_end @ factors)[better]
    return fitted, y - fitted, ends
