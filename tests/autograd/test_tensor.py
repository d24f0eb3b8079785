"""Tensors follow PyTorch and work together with NumPy."""

from pathlib import Path

import numpy as np
import pytest

import lucid
from lucid.errors import ConfigError
from lucid.nn import Linear


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


def test_a_name_that_nothing_resembles_is_answered_by_the_public_names_that_the_reference_has():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "python" / "lucid.rst").read_text()
    left_out = set(page.partition(":exclude-members:")[2].replace(",", " ").split())
    assert left_out == lucid.Tensor._internal - {"run_ready_hooks"}  # which has no docstring
    for x, own in ((lucid.tensor([1.0]), set()), (Linear(2, 2).weight, {"flat", "joined"})):
        assert x._internal <= {*dir(x)}
        assert own <= x._internal
        with pytest.raises(AttributeError) as caught:
            x.zzz  # noqa: B018
        shown = set(str(caught.value).partition(": it has ")[2].split(", "))
        assert {"abs", "data", "grad", "requires_grad", "view"} <= shown
        assert not shown & x._internal


@pytest.mark.parametrize("method", ["sum", "mean", "max", "argmax"])
@pytest.mark.parametrize("kept", [False, True])
def test_methods_take_the_names_of_pytorch_and_of_numpy(method, kept):
    x = lucid.tensor(np.random.default_rng(0).standard_normal((3, 4)))
    for place in (0, -1):
        by_dim = getattr(x, method)(dim=place, keepdim=kept)
        by_axis = getattr(x, method)(axis=place, keepdims=kept)
        for one, other in zip(*([each] if method != "max" else each for each in (by_dim, by_axis)), strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())
            assert one.ndim == 1 + kept


def test_softmax_and_cat_take_dim_too_and_two_names_of_one_argument_are_refused():
    x = lucid.tensor(np.random.default_rng(0).standard_normal((3, 4)))
    np.testing.assert_array_equal(x.softmax(dim=0).numpy(), x.softmax(axis=0).numpy())
    np.testing.assert_array_equal(x.softmax(dim=1).numpy(), x.softmax().numpy())
    assert lucid.cat([x, x], dim=1).shape == lucid.cat([x, x], axis=1).shape == lucid.cat([x, x], -1).shape == (3, 8)
    assert lucid.cat([x, x]).shape == (6, 4)
    for call in (x.sum, x.mean, x.max, x.argmax, x.softmax, lambda **given: lucid.cat([x], **given)):
        with pytest.raises(TypeError, match="axis and dim are two names of one argument"):
            call(axis=0, dim=0)


def test_it_prints_its_values():
    assert repr(lucid.tensor([1, 2])) == "tensor([1, 2])"
    assert "requires_grad=True" in repr(lucid.tensor([1.0], requires_grad=True))
