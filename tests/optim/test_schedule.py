"""The learning rate warms up linearly, and decays from there or at the end."""

import pytest

from lucid.optim import WarmupPolynomialDecay, WarmupStableDecay, clip_scale


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


def test_two_schedules_of_which_one_ends_where_the_other_starts_are_one():
    """BERT's two phases, with 90% of the steps in the first, have one linear decay."""
    whole = WarmupPolynomialDecay(peak=1e-4, warmup_steps=10_000, steps=1_000_000)
    between = 1e-4 * 100_000 / 990_000
    first = WarmupPolynomialDecay(peak=1e-4, warmup_steps=10_000, steps=900_000, final=between)
    second = WarmupPolynomialDecay(peak=between, warmup_steps=0, steps=100_000)
    for step in (0, 9_999, 10_000, 500_000, 899_999):
        assert first.learning_rate(step) == pytest.approx(whole.learning_rate(step))
    for step in (0, 1, 99_999):
        assert second.learning_rate(step) == pytest.approx(whole.learning_rate(900_000 + step))


def test_time_moves_the_schedule_on_where_steps_are_slower():
    schedule = WarmupPolynomialDecay(peak=1.0, warmup_steps=100, steps=1000, max_seconds=60)
    assert schedule.progress(10, seconds=0.3) == 10
    assert schedule.progress(10, seconds=30) == 500
    assert schedule.learning_rate(schedule.progress(10, seconds=3)) == pytest.approx(51 / 101)
    assert schedule.learning_rate(schedule.progress(10, seconds=33)) == pytest.approx(0.5)
    assert schedule.progress(10, seconds=60) == 1000


def test_without_a_limit_time_does_nothing():
    assert WarmupPolynomialDecay(peak=1.0, warmup_steps=0, steps=10).progress(3, seconds=1e9) == 3


def test_a_stable_rate_decays_at_the_end_only():
    schedule = WarmupStableDecay(peak=1.0, warmup_steps=4, steps=40, decay_steps=16)
    rates = [schedule.learning_rate(step) for step in range(40)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4:25] == [1.0] * 21
    assert rates[24 + 4] == pytest.approx(1 - 1 / 2)
    assert rates[24 + 9] == pytest.approx(1 - 3 / 4)
    assert 0 < rates[39] < rates[38] < 0.1


def test_the_stable_rate_of_a_branch_is_that_of_its_parent_to_the_bit():
    parent = WarmupStableDecay(peak=0.3, warmup_steps=4, steps=1000, decay_steps=0)
    branch = WarmupStableDecay(peak=0.3, warmup_steps=4, steps=50, decay_steps=10, final=0.07)
    assert all(parent.learning_rate(step) == branch.learning_rate(step) for step in range(41))
    assert branch.learning_rate(41) < 0.3
    assert parent.learning_rate(999) == 0.3


def test_time_brings_a_stable_rate_to_its_decay():
    schedule = WarmupStableDecay(peak=1.0, warmup_steps=0, steps=1000, decay_steps=250, max_seconds=60)
    assert schedule.learning_rate(schedule.progress(10, seconds=45)) == 1.0
    assert schedule.learning_rate(schedule.progress(10, seconds=48.75)) == pytest.approx(0.5)


@pytest.mark.parametrize(("norm", "scale"), [(0.5, 1.0), (4.0, 0.5), (0.0, 1.0)])
def test_only_gradients_that_are_too_long_are_shortened(norm, scale):
    assert clip_scale(norm, 2.0) == pytest.approx(scale)
