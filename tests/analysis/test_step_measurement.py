"""What the measurement makes of the times of steps, and how long it takes."""

import numpy as np
import pytest

from lucid.analysis.prediction.step_measurement import effort, fit, jitter_of


def test_steps_of_many_sizes_tell_the_time_of_a_flop_from_the_fixed_part():
    work = np.linspace(1e9, 4e9, 40)
    seconds = 0.3 + 0.2e-9 * work
    assert fit(work, seconds) == (pytest.approx(0.2e-9), pytest.approx(0.3), pytest.approx(0, abs=1e-9))
    delayed = np.where(np.arange(40) % 5, seconds, 3 * seconds)
    assert fit(work, delayed)[:2] == (pytest.approx(0.2e-9, rel=0.02), pytest.approx(0.3, rel=0.02))


def test_two_sizes_alone_are_enough_and_the_spread_of_steps_says_how_sure_the_fixed_part_is():
    work, spread = np.repeat([1e9, 4e9], 24), np.random.default_rng(1).normal(0, 1, 48)

    def measured(width):
        return fit(work, 0.3 + 0.2e-9 * work + width * spread)

    slope, fixed, error = measured(0.01)
    assert (slope, fixed) == (pytest.approx(0.2e-9, rel=0.05), pytest.approx(0.3, rel=0.1))
    assert 0 < error < measured(0.05)[2] < 0.1


@pytest.mark.parametrize(
    ("work", "seconds", "slope"),
    [([1, 4], [0.1, 0.8], 0.2), ([1, 4], [0.4, 0.4], 0.1), ([1, 1], [0.4, 0.4], 0.4), ([1, 4], [-0.1, -0.2], 0)],
)
def test_neither_part_is_ever_negative(work, seconds, slope):
    assert fit(np.array(work, float), np.array(seconds))[:2] == (pytest.approx(slope), 0)


def test_many_ranks_are_not_compared_step_by_step_with_all_others():
    work = np.linspace(1e9, 4e9, 5000)
    assert fit(work, 0.3 + 0.2e-9 * work)[:2] == (pytest.approx(0.2e-9), pytest.approx(0.3))


def test_what_delays_all_ranks_at_once_is_no_jitter():
    own = np.random.default_rng(1).normal(0, 0.05, (2, 400))
    common = np.random.default_rng(2).normal(0, 0.2, 400)
    assert jitter_of(1 + own) == pytest.approx(0.05, rel=0.1)
    assert jitter_of(1 + own + common) == pytest.approx(jitter_of(1 + own))
    assert jitter_of(1 + own[:1]) == pytest.approx(0.05, rel=0.1)


def test_the_effort_is_bounded_whatever_the_model_takes():
    for flops in (1e6, 1e9, 1e11, 1e12):
        plan = effort([1, 8, 64, 512], flops, rate=1e11)
        assert 1 <= plan.sizes[0] <= max(1, plan.sizes[1] / 2)
        assert plan.seconds <= max(60, 16 * 1.4 * flops / 1e11)
    assert effort([16, 16], 1e6, 1e11).sizes == (4, 16)
    assert effort([1], 1e6, 1e11).sizes == (1, 1)
