"""Tensors of a given shape."""

import numpy as np
import pytest

import lucid
from lucid import creation
from lucid.errors import ConfigError

MAKERS = pytest.mark.parametrize("make", [lucid.zeros, lucid.ones, lucid.randn])


@MAKERS
def test_a_shape_is_given_as_numbers_or_as_a_tuple(make):
    for tensor in (make(2, 3), make((2, 3)), make([2, 3]), make(*np.array([2, 3]))):
        assert (tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad) == ((2, 3), np.float32, "cpu", False)
    assert (make().shape, make(0, 4).shape, make(5).shape) == ((), (0, 4), (5,))


@MAKERS
def test_dtype_and_gradient_may_be_chosen(make):
    tensor = make(3, dtype=np.float64, requires_grad=True)
    (tensor * tensor).sum().backward()
    np.testing.assert_array_equal(tensor.grad.numpy(), 2 * tensor.numpy())
    assert tensor.grad.dtype == np.float64
    with pytest.raises(ConfigError, match="tpu"):
        make(3, device="tpu")


def test_zeros_and_ones_are():
    assert (lucid.zeros(4).numpy() == 0).all()
    assert (lucid.ones(4, dtype=np.int64).numpy() == 1).all()


def test_normal_numbers_follow_the_seed_and_have_mean_zero_and_deviation_one():
    lucid.manual_seed(3)
    first, second = lucid.randn(200, 100).numpy(), lucid.randn(200, 100).numpy()
    lucid.manual_seed(3)
    np.testing.assert_array_equal(lucid.randn(200, 100).numpy(), first)
    assert (first != second).all()
    assert abs(first.mean()) < 0.03
    assert first.std() == pytest.approx(1, abs=0.02)
    assert creation.randn(0).shape == (0,)
