"""Recomputation: what is not kept is made again, and nobody can tell the difference by a gradient."""

import weakref

import numpy as np
import pytest

import lucid
from lucid import random
from lucid.autograd import recompute
from lucid.nn import functional


def leaves(*shapes):
    generator = np.random.default_rng(0)
    return [lucid.tensor(generator.standard_normal(shape), requires_grad=True) for shape in shapes]


def kept(function, *inputs):
    return function(*inputs)


def nested(function, *inputs):
    return recompute(lambda *again: recompute(function, *again) * 1.0, *inputs)


def gradients_and_ready(through):
    """The gradients of a graph with parts, each called by `through`, and the order in which its leaves are ready.

    The weight is used by both parts, twice by the first, and outside of them; the hidden values by both and outside.
    """
    ready = []
    x, weight, shift, scale = leaves((3, 4), (4, 4), (4,), (3, 4))
    named = {"x": x, "weight": weight, "shift": shift, "scale": scale}
    for name, leaf in named.items():
        leaf.add_ready_hook(lambda name=name: ready.append(name))
    hidden = (x * scale).exp()
    first = through(lambda h, w: ((h @ w + shift).tanh() @ w) * h, hidden, weight)
    second = through(lambda h, f: (h @ weight) * f, hidden, first)
    (second + hidden + (first @ weight)).sum().backward()
    return {name: leaf.grad.numpy() for name, leaf in named.items()}, ready


@pytest.mark.parametrize("through", [recompute, nested])
def test_gradients_and_the_order_of_ready_leaves_are_those_of_a_kept_graph(through):
    expected, order = gradients_and_ready(kept)
    gradients, ready = gradients_and_ready(through)
    assert ready == order
    assert sorted(ready) == sorted(gradients)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, expected[name], err_msg=name)


def test_what_parts_compute_on_the_way_is_there_for_one_part_at_a_time():
    made, alive = [], []

    def part(x):
        hidden = x.exp()
        alive.append(sum(array() is not None for array in made))
        made.append(weakref.ref(hidden.data))
        return hidden * 0.1

    (x,) = leaves((2,))
    y = x
    for _ in range(3):
        y = recompute(part, y)
    y.sum().backward()
    assert alive == [0] * 6


def test_nothing_is_recorded_without_gradients():
    (x,) = leaves((2,))
    with lucid.no_grad():
        y = recompute(lambda x: x * 2, x)
    assert not y.requires_grad
    assert not recompute(lambda x: x * 2, x.detach()).requires_grad


def test_what_is_not_to_be_recorded_inside_is_not_recorded_again_either():
    def function(x):
        with lucid.no_grad():
            constant = x * x
        return x * constant

    (x,) = leaves((2,))
    recompute(function, x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), (x * x).numpy())


def test_backward_may_run_where_nothing_is_recorded():
    (x,) = leaves((2,))
    y = recompute(lambda x: x * 3, x).sum()
    with lucid.no_grad():
        y.backward()
    np.testing.assert_array_equal(x.grad.numpy(), [3.0, 3.0])


def test_a_function_may_return_what_it_was_given():
    (x,) = leaves((2,))
    doubled = x * 2
    assert recompute(lambda x: x, x) is x
    assert recompute(lambda x: x, doubled) is doubled


def test_backward_twice_is_refused():
    (x,) = leaves((2,))
    y = recompute(lambda x: x * x, x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="run forward again"):
        y.backward()


def test_a_function_that_leads_elsewhere_the_second_time_is_refused():
    x, other = leaves((2,), (2,))
    calls = iter([x, other])
    with pytest.raises(RuntimeError, match="other tensors"):
        recompute(lambda: next(calls) * 2).sum().backward()


def dropped(through, x):
    lucid.manual_seed(3)
    first = functional.dropout(x, 0.5)
    return through(lambda x: functional.dropout(functional.dropout(x, 0.2, site=1), 0.5, site=2), first)


def test_what_is_drawn_by_hand_is_drawn_again_and_later_draws_stay_as_they_were():
    found = []
    for through in (kept, recompute):
        (x,) = leaves((5, 40))
        y = dropped(through, x)
        functional.dropout(x, 0.5)
        y.sum().backward()
        found.append((y.numpy(), x.grad.numpy(), functional.dropout(x, 0.5).numpy()))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_drawn_at_coordinates_is_drawn_there_again_wherever_backward_runs():
    found = []
    for through in (kept, recompute):
        (x,) = leaves((5, 40))
        with random.at(random.Coordinates.of(7, 1, np.arange(5))):
            y = dropped(through, x)
        with random.at(random.Coordinates.of(8, 2, np.arange(9))):
            y.sum().backward()
        found.append((y.numpy(), x.grad.numpy()))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
