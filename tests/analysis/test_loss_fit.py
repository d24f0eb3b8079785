"""The extrapolation of losses: on curves of the law that it fits, and on too little of a curve."""

import numpy as np
import pytest

from lucid.analysis.prediction.loss_fit import forecast

END, WARM_UP = 1000, 20


def decay(step):
    """Linear warm-up and decay."""
    return min((step + 1) / WARM_UP, max(0.0, (END - step) / (END - WARM_UP)))


def curve(rate, noise=0.0, offset=4.0, falls_with_rate=0.3, every=10):
    """Steps and losses of a run: a power law of the distance, and a part that follows the rate."""
    rates = np.array([rate(step) for step in range(END)])
    steps = np.arange(every, END + 1, every)
    distance = rates.cumsum()[steps - 1]
    losses = offset + 20 * (distance + 40) ** -0.5 + falls_with_rate * rates[steps - 1]
    return steps, losses + noise * np.random.default_rng(1).standard_normal(len(steps))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("rate", [decay, lambda step: min(1.0, (step + 1) / WARM_UP)], ids=["decay", "constant"])
def test_the_interval_holds_the_end_of_a_noisy_curve(rate, share):
    steps, losses = curve(rate, noise=0.03)
    _, exact = curve(rate)
    used = steps <= share * END
    found = forecast(steps[used], losses[used], rate, END, WARM_UP)
    assert found.low <= exact[-1] <= found.high
    assert found.low <= found.loss <= found.high
    assert found.loss == pytest.approx(exact[-1], abs=0.2)
    assert (found.last, found.share) == (share * END, share)


def test_a_decay_to_come_lowers_the_end():
    """Up to half of the run, both schedules of `wsd` are the same; only one of them decays afterwards."""

    def constant(step):
        return min(1.0, (step + 1) / WARM_UP)

    steps, losses = curve(decay, noise=0.01)
    used = steps <= 500
    falling, steady = (forecast(steps[used], losses[used], rate, END, WARM_UP).loss for rate in (decay, constant))
    assert falling != steady
    assert falling == pytest.approx(curve(decay)[1][-1], abs=0.15)


def test_a_loss_that_rises_is_not_extrapolated_below_or_beyond_reason():
    steps = np.arange(10, 510, 10)
    found = forecast(steps, 5 + steps / 1000, decay, END, WARM_UP)
    assert 4.9 <= found.low <= found.high <= 5.6


def test_losses_that_are_not_finite_do_not_count():
    steps, losses = curve(decay, noise=0.01)
    used = steps <= 500
    with_gap = losses.copy()
    with_gap[30] = np.nan
    found = forecast(steps[used], with_gap[used], decay, END, WARM_UP)
    assert found.points == forecast(steps[used], losses[used], decay, END, WARM_UP).points - 1
    assert np.isfinite([found.loss, found.low, found.high]).all()


@pytest.mark.parametrize(("first", "last"), [(0, 190), (400, 540), (0, 0)])
def test_too_few_points_or_too_early_ones_say_nothing(first, last):
    steps, losses = curve(decay)
    used = (steps > first) & (steps <= last)
    assert forecast(steps[used], losses[used], decay, END, WARM_UP) is None
