"""Tensors follow PyTorch and work together with NumPy."""

import numpy as np
import pytest

import lucid
from lucid.errors import ConfigError


def test_python_floats_become_float32_and_arrays_keep_their_dtype():
    assert lucid.tensor([1.0, 2.0]).dtype == np.float32
    assert lucid.tensor([1, 2]).dtype == np.int64
    assert lucid.tensor(np.zeros(2)).dtype == np.float64
    assert lucid.tensor(np.zeros(2), dtype=np.float32).dtype == np.float32


def test_a_tensor_shares_the_memory_of_its_array():
    array = np.zeros(3, np.float32)
    lucid.tensor(array).numpy()[1] = 5
    assert array[1] == 5


def test_numbers_and_arrays_come_out():
    x = lucid.tensor(np.array(1.5))
    assert (x.item(), float(x), int(x), f"{x:.2f}") == (1.5, 1.5, 1, "1.50")
    np.testing.assert_array_equal(np.asarray(lucid.tensor([[1, 2]])), [[1, 2]])
    np.testing.assert_array_equal(np.from_dlpack(lucid.tensor([1.0, 2.0])), [1.0, 2.0])
    assert len(lucid.tensor([1, 2, 3])) == 3


def test_an_array_times_a_tensor_is_a_tensor():
    x = lucid.tensor(np.ones(3), requires_grad=True)
    y = np.arange(3.0) * x
    assert isinstance(y, lucid.Tensor)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [0, 1, 2])


def test_comparisons_are_elementwise():
    x = lucid.tensor([1, 2, 3])
    assert (x == np.array([1, 0, 3])).numpy().tolist() == [True, False, True]
    assert (x != x).numpy().tolist() == [False] * 3
    assert (x > 1).numpy().tolist() == [False, True, True]
    assert (x < 2).numpy().tolist() == [True, False, False]
    assert (x >= 2).numpy().tolist() == [False, True, True]
    assert (x <= 2).numpy().tolist() == [True, True, False]


def test_a_tensor_may_index_another():
    x = lucid.tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    (x[x > 3].sum() + x[0, lucid.tensor([1, 1])].sum()).backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[0, 2, 0], [0, 1, 1]])


def test_what_has_no_dimensions_is_an_array_all_the_same():
    x = lucid.tensor(np.ones(3), requires_grad=True)
    for y in (x.sum() * 2, x[0] + x[1], x.sum() > 1):
        assert isinstance(y.data, np.ndarray)
        assert np.from_dlpack(y) == y.data


def test_a_shape_may_be_a_tuple():
    x = lucid.tensor(np.arange(6))
    assert x.reshape((2, 3)).shape == x.reshape(2, -1).shape == (2, 3)


def test_to_changes_dtype_or_device():
    x = lucid.tensor([1.0])
    assert x.to(np.float64).dtype == np.float64
    assert x.to("cpu") is x
    assert x.device == "cpu"


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cpu:1"])
def test_an_unknown_device_is_named(device):
    with pytest.raises(ConfigError, match="not known"):
        lucid.tensor([1.0], device=device)


def test_asking_for_a_gpu_that_is_not_there_says_so():
    with pytest.raises(ConfigError, match=r"CuPy|no such GPU"):
        lucid.tensor([1.0], device="cuda:63")


def test_a_name_that_a_tensor_does_not_have_is_answered_by_those_it_has():
    x = lucid.tensor([1.0])
    with pytest.raises(AttributeError, match=r"^Tensor has no 'reshap': did you mean reshape or shape\?$"):
        x.reshap  # noqa: B018
    with pytest.raises(AttributeError, match=r"^Tensor has no 'cuda': it has .*\babs, .*\bto, .*\bview"):
        x.cuda  # noqa: B018
    assert not hasattr(x, "__cuda_array_interface__")
    assert getattr(x, "_no", None) is None


def test_it_prints_its_values():
    assert repr(lucid.tensor([1, 2])) == "tensor([1, 2])"
    assert "requires_grad=True" in repr(lucid.tensor([1.0], requires_grad=True))
