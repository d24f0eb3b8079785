"""The learning rate warms up linearly and decays to zero from there."""

import pytest

from lucid.optim import WarmupPolynomialDecay, clip_scale


def test_it_rises_to_the_peak_and_falls_to_zero():
    schedule = WarmupPolynomialDecay(peak=1.0, warmup_steps=4, steps=12)
    rates = [schedule.learning_rate(step) for step in range(13)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:] == pytest.approx([1 - i / 8 for i in range(9)])
    assert rates[12] == 0


def test_the_power_bends_the_decay():
    schedule = WarmupPolynomialDecay(peak=2.0, warmup_steps=0, steps=100, power=0.5)
    assert schedule.learning_rate(75) == pytest.approx(1.0)


def test_without_warm_up_it_starts_at_the_peak():
    assert WarmupPolynomialDecay(peak=3.0, warmup_steps=0, steps=10).learning_rate(0) == 3.0


@pytest.mark.parametrize(("norm", "scale"), [(0.5, 1.0), (4.0, 0.5), (0.0, 1.0)])
def test_only_gradients_that_are_too_long_are_shortened(norm, scale):
    assert clip_scale(norm, 2.0) == pytest.approx(scale)
