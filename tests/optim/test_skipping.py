"""A step whose gradient is not finite changes nothing, and the clipping says so: nobody has to look at the norm."""

import numpy as np
import pytest

from lucid import nn, optim

OPTIMIZERS = pytest.mark.parametrize("optimizer", [optim.AdamW, optim.LAMB])


class Stepped:
    """A layer that takes steps by gradients of its own."""

    def __init__(self, optimizer, **options):
        self.flat = nn.flatten(nn.Linear(5, 3), **options)
        self.optimizer = optimizer(optim.OneProcess(self.flat))

    def step(self, learning_rate, gradient):
        self.flat.gradients[: len(gradient)] = gradient
        norm = optim.global_norm(self.optimizer.partition)
        self.optimizer.step(learning_rate, optim.clip_scale(norm, 1.0))
        return norm

    def state(self):
        return [
            self.flat.values.copy(), self.flat.bfloat16_copy.copy(), self.optimizer.first_moments.copy(),
            self.optimizer.second_moments.copy(), self.optimizer.updates,
        ]  # fmt: skip


@OPTIMIZERS
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(optimizer, bad):
    stepped = Stepped(optimizer, bfloat16_copy=True)
    stepped.step(1e-2, [1, 2, 3])
    before = stepped.state()
    norm = stepped.step(1e-2, [1, bad, 3])
    assert not np.isfinite(norm)
    for one, other in zip(stepped.state(), before, strict=True):
        np.testing.assert_array_equal(one, other)


@OPTIMIZERS
def test_the_step_after_a_skipped_one_is_that_which_would_have_been(optimizer):
    with_skips, without = (Stepped(optimizer) for _ in range(2))
    without.flat.values[:] = with_skips.flat.values
    for gradient in ([np.nan], [1, 2], [np.inf], [3, 4]):
        with_skips.step(1e-2, gradient)
        if np.isfinite(gradient).all():
            without.step(1e-2, gradient)
    assert with_skips.optimizer.updates == without.optimizer.updates == 2
    np.testing.assert_array_equal(with_skips.flat.values, without.flat.values)


@OPTIMIZERS
def test_rate_and_scale_may_be_arrays(optimizer):
    by_number, by_array = (Stepped(optimizer) for _ in range(2))
    by_array.flat.values[:] = by_number.flat.values
    for stepped in (by_number, by_array):
        stepped.flat.gradients[:3] = 1, 2, 3
    by_number.optimizer.step(1e-2, 0.5)
    by_array.optimizer.step(np.array(1e-2), np.array(0.5))
    np.testing.assert_array_equal(by_array.flat.values, by_number.flat.values)


@pytest.mark.parametrize("norm", [np.inf, np.nan])
def test_what_is_not_finite_cannot_be_clipped(norm):
    assert np.isnan(optim.clip_scale(norm, 1.0))
