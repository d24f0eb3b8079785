"""Optimizers that are given parameters, as in PyTorch."""

import numpy as np
import pytest

from lucid import nn, optim, tensor
from lucid.distributed import DistributedDataParallel
from lucid.distributed.communicators.single import SingleCommunicator

OPTIMIZERS = pytest.mark.parametrize("optimizer", [optim.AdamW, optim.LAMB])
X = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)


class Two(nn.Module):
    """Two layers, the second of which need not be used."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 3)
        for number, (_, parameter) in enumerate(self.named_parameters()):
            parameter.data[...] = np.random.default_rng(number).standard_normal(parameter.shape)

    def forward(self, x, both=True):
        x = self.first(x)
        return self.second(x) if both else x


def loss_of(model, **options):
    y = model(tensor(X), **options)
    return (y * y).sum()


def trained(model, optimizer, steps=3, **options):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, **options).backward()
        optimizer.step()
    return model.state_dict()


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@OPTIMIZERS
@pytest.mark.parametrize(
    "given",
    [
        lambda model: model.parameters(),
        lambda model: model.named_parameters(),
        lambda model: list(model.parameters()),
        lambda model: [*model.parameters(), model.first.weight],
        lambda model: optim.OneProcess(nn.flatten(model)),
        lambda model: DistributedDataParallel(model, SingleCommunicator()).parameters(),
    ],
    ids=["parameters", "named", "list", "one twice", "partition", "data parallel"],
)
def test_every_way_to_give_the_parameters_takes_the_same_steps(optimizer, given):
    model, other = Two(), Two()
    expected = trained(other, optimizer(optim.OneProcess(nn.flatten(other)), lr=1e-2))
    assert_equal(trained(model, optimizer(given(model), lr=1e-2)), expected)


def test_the_learning_rate_may_change_from_step_to_step():
    model, other = Two(), Two()
    ours, by_argument = optim.AdamW(model.parameters()), optim.AdamW(other.parameters())
    for rate in (1e-2, 0.0, 3e-3):
        for each in (model, other):
            each.zero_grad()
            loss_of(each).backward()
        ours.lr = rate
        ours.step()
        by_argument.step(rate)
    assert_equal(model.state_dict(), other.state_dict())
    assert optim.AdamW(Two().parameters()).lr == 1e-4


@OPTIMIZERS
def test_a_parameter_that_backward_has_not_reached_has_a_gradient_of_zero(optimizer):
    model = Two()
    stepper = optimizer(model.parameters(), lr=1e-2, weight_decay=0.0)
    trained(model, stepper, steps=1)
    moments = stepper.moments()["first_moment.second.weight"].copy()
    before = float(stepper.gradient_norm())
    stepper.zero_grad()
    loss_of(model, both=False).backward()
    norm = float(stepper.gradient_norm())
    squares = sum(float((parameter.grad**2).sum()) for parameter in model.first.parameters())
    assert norm == pytest.approx(np.sqrt(squares), rel=1e-5)
    assert norm != before
    stepper.step()
    np.testing.assert_allclose(stepper.moments()["first_moment.second.weight"], 0.9 * moments, rtol=1e-6)


def test_a_step_without_any_gradient_is_refused():
    optimizer = optim.AdamW(Two().parameters())
    for use in (optimizer.step, optimizer.gradient_norm):
        with pytest.raises(RuntimeError, match="no parameter has a gradient: call backward between"):
            use()


def test_clipping_scales_the_gradients_of_a_step():
    model, other = Two(), Two()
    clipped, plain = optim.AdamW(model.parameters()), optim.AdamW(other.parameters())
    for each in (model, other):
        loss_of(each).backward()
    norm = clipped.gradient_norm()
    assert norm > 1
    clipped.step(gradient_scale=optim.clip_scale(norm, 1.0))
    for parameter in other.parameters():
        parameter.grad.data[...] *= 1.0 / (norm + 1e-6)
    plain.step()
    for name, values in model.state_dict().items():
        np.testing.assert_allclose(values, other.state_dict()[name], rtol=1e-6)


@OPTIMIZERS
def test_a_run_goes_on_from_its_saved_state_as_if_it_had_not_stopped(optimizer):
    model, other = Two(), Two()
    stepper = optimizer(model.parameters(), lr=1e-2)
    trained(model, stepper)
    weights, state = ({name: array.copy() for name, array in each.state_dict().items()} for each in (model, stepper))
    expected = trained(model, stepper)
    other.load_state_dict(weights)
    # Data-parallel training names parameters as the module does, so a state fits both.
    again = optimizer(DistributedDataParallel(other, SingleCommunicator()).parameters(), lr=1e-2)
    again.load_state_dict(state)
    assert (again.updates, state["updates"].dtype) == (3, np.int64)
    assert_equal(trained(other, again), expected)


def test_a_state_of_other_parameters_is_refused():
    model = Two()
    state = optim.AdamW(model.parameters()).state_dict()
    with pytest.raises(ValueError, match=r"missing first_moment.weight, first_moment.bias, second_moment.weight"):
        optim.AdamW(nn.Linear(5, 4).parameters()).load_state_dict(state)
    state["first_moment.first.weight"] = np.zeros((4, 4), np.float32)
    with pytest.raises(ValueError, match=r"first_moment.first.weight has shape \(4, 4\), not \(4, 5\)"):
        optim.AdamW(Two().parameters()).load_state_dict(state)


def test_an_optimizer_made_again_goes_on_with_the_same_buffers():
    model = Two()
    first, second = optim.AdamW(model.parameters()), optim.AdamW(model.parameters())
    assert first.flat is second.flat
    assert second.updates == 0


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (lambda model: [{"params": list(model.parameters())}], TypeError, r"got a dict \(there are no groups"),
        (lambda model: [model.first], TypeError, r"as model.parameters\(\), got a Linear"),
        (lambda model: [], ValueError, "there are no parameters"),
    ],
)
def test_what_are_no_parameters_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        optim.AdamW(given(Two()))


@pytest.mark.parametrize("rate", [-1e-3, float("nan")])
def test_a_learning_rate_below_zero_is_refused(rate):
    with pytest.raises(ValueError, match="it takes a number from 0 on"):
        optim.AdamW(Two().parameters(), lr=rate)


def test_a_part_of_the_parameters_of_buffers_is_refused():
    model, other = Two(), Two()
    DistributedDataParallel(model, SingleCommunicator())
    for some in (model.first.parameters(), [*model.parameters(), *other.parameters()]):
        with pytest.raises(ValueError, match="these are not all parameters of a module"):
            optim.AdamW(some)
    assert not other.first.weight.in_flat_buffers


def test_a_part_of_a_module_may_be_trained_alone():
    model = Two()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    after = trained(model, optim.AdamW(model.second.parameters(), lr=1e-2))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"second.weight", "second.bias"}
