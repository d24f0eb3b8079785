"""What the measurement makes of the times of steps, and how long it takes."""

import pytest

from lucid.analysis.step_measurement import Timed, effort, fit


def test_two_sizes_tell_the_time_of_a_flop_from_the_fixed_part():
    small = [Timed(1e9, 0.5 + extra) for extra in (0.0, 0.01, -0.01, 3.0, -0.02)]
    large = [Timed(4e9, 1.1 + extra) for extra in (0.0, 0.02, -0.01, 9.0, -0.03)]
    assert fit([small, large]) == (pytest.approx(0.2e-9), pytest.approx(0.3))


def test_neither_part_is_ever_negative():
    assert fit([[Timed(1e9, 0.1)], [Timed(4e9, 0.8)]]) == (pytest.approx(0.2e-9), 0)
    assert fit([[Timed(1e9, 0.4)], [Timed(4e9, 0.4)]]) == (pytest.approx(1e-10), 0)
    assert fit([[Timed(1e9, 0.4)], [Timed(1e9, 0.4)]]) == (pytest.approx(4e-10), 0)


def test_the_effort_is_bounded_whatever_the_model_takes():
    for flops in (1e6, 1e9, 1e11, 1e12):
        plan = effort([1, 8, 64, 512], flops, rate=1e11)
        assert 1 <= plan.sizes[0] <= max(1, plan.sizes[1] / 2)
        assert plan.seconds <= max(60, 13 * 1.4 * flops / 1e11)
    assert effort([16, 16], 1e6, 1e11).sizes == (4, 16)
    assert effort([1], 1e6, 1e11).sizes == (1, 1)
