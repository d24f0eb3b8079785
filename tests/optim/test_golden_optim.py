"""The optimisers and the clipping against torch's, kept in `tests/golden`: no torch is needed here."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lucid import nn, optim

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = "first.weight", "first.bias", "second.weight", "second.bias"
# The golden values were computed in float64: what is left is float32's rounding over 20 steps.
TOLERANCE = 1e-6


class TwoLayers(nn.Module):
    """The shapes of the golden run."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(7, 5)
        self.second = nn.Linear(5, 3)


@pytest.fixture
def flat():
    return nn.flatten(TwoLayers())


def fill(flat, buffer, arrays):
    views = flat.views(buffer)
    for name in NAMES:
        views[name][...] = arrays[name]


def part(golden, prefix):
    return {name: golden[f"{prefix}.{name}"] for name in NAMES}


def assert_run_is_golden(flat, optimizer, golden, gradient_scale=1.0):
    """Take the steps of a golden run and compare the parameters after each."""
    fill(flat, flat.values, part(golden, "before"))
    gradients, after = part(golden, "gradients"), part(golden, "after")
    for step, learning_rate in enumerate(golden["learning_rates"].tolist()):
        fill(flat, flat.gradients, {name: gradients[name][step] / gradient_scale for name in NAMES})
        optimizer.step(learning_rate, gradient_scale=gradient_scale)
        for name, values in flat.views(flat.values).items():
            expected = after[name][step]
            error = np.abs(values - expected).max() / np.abs(expected).max()
            assert error <= TOLERANCE, f"{name}, step {step}: {error:.1e} of its largest element"


def test_adamw_takes_the_steps_of_torch(flat):
    assert_run_is_golden(flat, optim.AdamW(optim.OneProcess(flat)), load_file(GOLDEN / "adamw.safetensors"))


def test_adamw_without_bias_correction_takes_the_steps_of_the_original_bert(flat):
    optimizer = optim.AdamW(optim.OneProcess(flat), bias_correction=False)
    assert_run_is_golden(flat, optimizer, load_file(GOLDEN / "adamw_uncorrected.safetensors"))


def test_lamb_takes_the_steps_of_the_paper(flat):
    assert_run_is_golden(flat, optim.LAMB(optim.OneProcess(flat)), load_file(GOLDEN / "lamb.safetensors"))


@pytest.mark.parametrize("optimizer", ["AdamW", "LAMB"])
def test_gradients_are_scaled_as_they_are_read(flat, optimizer):
    golden = load_file(GOLDEN / f"{optimizer.lower()}.safetensors")
    assert_run_is_golden(flat, getattr(optim, optimizer)(optim.OneProcess(flat)), golden, gradient_scale=0.25)


@pytest.mark.parametrize("case", ["above", "below"])
def test_clipping_by_the_global_norm_is_that_of_torch(flat, case):
    golden = load_file(GOLDEN / "clipping.safetensors")
    fill(flat, flat.gradients, part(golden, "gradient"))
    norm = optim.global_norm(optim.OneProcess(flat))
    assert norm == pytest.approx(golden[f"{case}.norm"], rel=TOLERANCE)
    scale = optim.clip_scale(norm, golden[f"{case}.max_norm"].item())
    assert scale <= 1.0
    for name, gradient in flat.views(flat.gradients).items():
        np.testing.assert_allclose(scale * gradient, golden[f"{case}.clipped.{name}"], rtol=TOLERANCE)


def test_the_gap_between_parameters_stays_zero(flat):
    golden = load_file(GOLDEN / "adamw.safetensors")
    assert_run_is_golden(flat, optim.AdamW(optim.OneProcess(flat)), golden)
    used = np.zeros(len(flat.values), bool)
    for segment in flat.segments:
        used[segment.start : segment.stop] = True
    assert not used.all()
    assert (flat.values[~used] == 0).all()
