"""Backward: what it adds up, what it forgets, and when leaves are ready."""

import numpy as np
import pytest

import lucid
from lucid.autograd import after_backward


def leaf(*values):
    return lucid.tensor(np.array(values, dtype=np.float64), requires_grad=True)


def test_a_leaf_used_twice_gets_both_gradients():
    x = leaf(3.0)
    (x * x + 2 * x).backward()
    assert x.grad.item() == 8.0


def test_an_intermediate_used_thrice_gets_all_gradients():
    x = leaf(1.0, 2.0)
    y = x * 2
    (y + y * y + y).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2 * (2 + 2 * (2 * x.numpy())))


def test_gradients_add_up_until_zero_grad():
    x = leaf(1.0)
    (x * 2).backward()
    (x * 3).backward()
    assert x.grad.item() == 5.0
    x.zero_grad()
    assert x.grad is None
    (x * 4).backward()
    assert x.grad.item() == 4.0


def test_the_contribution_of_one_use_does_not_leak_into_another():
    x, y = leaf(1.0, 1.0), leaf(2.0, 2.0)
    shared = x + y
    (shared + shared * 3 + x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [5.0, 5.0])
    np.testing.assert_array_equal(y.grad.numpy(), [4.0, 4.0])


def test_a_leaf_is_ready_once_after_its_last_use():
    seen = []
    x, y = leaf(2.0), leaf(3.0)
    x.add_ready_hook(lambda: seen.append(("x", x.grad.item())))
    y.add_ready_hook(lambda: seen.append(("y", y.grad.item())))
    early = x * y
    (early * x).backward()
    assert sorted(seen) == [("x", 12.0), ("y", 4.0)]


def test_leaves_are_ready_from_the_loss_backward():
    seen = []
    first, second = leaf(2.0), leaf(3.0)
    first.add_ready_hook(lambda: seen.append("first"))
    second.add_ready_hook(lambda: seen.append("second"))
    ((first * 2.0).exp() * second).backward()
    assert seen == ["second", "first"]


def test_callbacks_run_when_all_leaves_are_ready():
    seen = []
    x = leaf(1.0)
    x.add_ready_hook(lambda: after_backward(lambda: seen.append(x.grad.item())))
    (x * 5).backward()
    assert seen == [5.0]
    with pytest.raises(RuntimeError, match="no backward pass"):
        after_backward(lambda: None)


def test_a_deep_graph_needs_no_deep_stack():
    x = leaf(1.0)
    y = x
    for _ in range(20_000):
        y = y + 0.0
    y.backward()
    assert x.grad.item() == 1.0


def test_no_grad_records_nothing():
    x = leaf(1.0)
    with lucid.no_grad():
        y = x * 2
    assert not y.requires_grad
    with pytest.raises(ValueError, match="requires_grad"):
        y.backward()


def test_backward_twice_through_one_graph_is_refused():
    x = leaf(1.0)
    y = (x * x).exp()
    y.backward()
    with pytest.raises(RuntimeError, match="run forward again"):
        y.backward()


def test_a_loss_of_many_elements_needs_its_weights():
    x = leaf(1.0, 2.0)
    with pytest.raises(ValueError, match="argument gradient"):
        (x * 2).backward()
    with pytest.raises(ValueError, match="shape"):
        (x * 2).backward(np.ones(3))


def test_activations_are_freed_as_backward_goes():
    x = leaf(1.0, 2.0)
    y = x.exp()
    function = y.origin
    y.sum().backward()
    assert function.origins == ()
