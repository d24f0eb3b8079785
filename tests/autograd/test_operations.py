"""Every operation agrees with NumPy forward and with finite differences backward."""

import numpy as np
import pytest
from gradient_check import check_gradients

import lucid
from lucid.autograd import operations

RANDOM = np.random.default_rng(1)
A = RANDOM.standard_normal((3, 4))
B = RANDOM.standard_normal((3, 4))
POSITIVE = np.abs(A) + 0.5

CASES = {
    "add": (lambda a, b: a + b, A, B),
    "add broadcast": (lambda a, b: a + b, A, B[0]),
    "add broadcast inside": (lambda a, b: a + b, A, B[:, :1]),
    "add number": (lambda a: 2.0 + a, A),
    "add array": (lambda a: B + a, A),
    "subtract": (lambda a, b: a - b, A, B[:1]),
    "subtract from number": (lambda a: 1 - a, A),
    "multiply": (lambda a, b: a * b, A, B[0]),
    "multiply by itself": (lambda a: a * a * a, A),
    "divide": (lambda a, b: a / b, A, POSITIVE),
    "divide broadcast": (lambda a, b: a / b, A, POSITIVE[:, :1]),
    "divide number": (lambda a: 1 / a, POSITIVE),
    "negate": (lambda a: -a, A),
    "power": (lambda a: a**3, A),
    "sqrt": (lambda a: a.sqrt(), POSITIVE),
    "exp": (lambda a: a.exp(), A),
    "log": (lambda a: a.log(), POSITIVE),
    "tanh": (lambda a: a.tanh(), A),
    "abs": (lambda a: a.abs(), A),
    "max": (lambda a: a.max(), A),
    "max along an axis": (lambda a: a.max(0).values, A),
    "max keeping axes": (lambda a: a.max(-1, keepdims=True).values, RANDOM.standard_normal((2, 3, 4))),
    "cat": (lambda a, b: lucid.cat([a, b]), A, B[:1]),
    "cat along the last axis": (lambda a, b: lucid.cat((a, B, b, a), axis=-1), A, B[:, :1]),
    "T": (lambda a: a.T @ B, A),
    "view": (lambda a: a.view([2, -1]), A),
    "matmul": (lambda a, b: a @ b, A, B.T),
    "matmul batched": (lambda a, b: a @ b, RANDOM.standard_normal((2, 3, 4)), RANDOM.standard_normal((2, 4, 5))),
    "matmul broadcast": (lambda a, b: a @ b, RANDOM.standard_normal((2, 3, 4)), RANDOM.standard_normal((4, 5))),
    "matmul array": (lambda b: A @ b, B.T),
    "sum": (lambda a: a.sum(), A),
    "sum of an axis": (lambda a: a.sum(0), A),
    "sum keeping axes": (lambda a: a.sum((0, 1), keepdims=True), A),
    "mean": (lambda a: a.mean(), A),
    "mean of an axis": (lambda a: a.mean(-1, keepdims=True), A),
    "reshape": (lambda a: a.reshape(2, -1), A),
    "transpose": (lambda a: a.transpose(0, -1), A),
    "permute": (lambda a: a.permute(1, 2, 0), RANDOM.standard_normal((2, 3, 4))),
    "slice": (lambda a: a[1:, ::2], A),
    "gather rows, some twice": (lambda a: a[np.array([0, 2, 2])], A),
    "gather elements": (lambda a: a[np.array([0, 1]), np.array([3, 3])], A),
    "boolean mask": (lambda a: a[A > 0], A),
    "softmax": (lambda a: a.softmax(), A),
    "softmax over rows": (lambda a: a.softmax(0), A),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_agree_with_finite_differences(name):
    function, *arrays = CASES[name]
    check_gradients(function, *arrays)


# The constant input of the others is itself in double precision.
@pytest.mark.parametrize("name", sorted(CASES.keys() - {"add array", "matmul array", "cat along the last axis", "T"}))
def test_single_precision_stays_single(name):
    function, *arrays = CASES[name]
    inputs = [lucid.tensor(array.astype(np.float32), requires_grad=True) for array in arrays]
    output = function(*inputs)
    output.backward(np.ones(output.shape, np.float32))
    assert output.dtype == np.float32
    assert all(item.grad.dtype == np.float32 for item in inputs)


def test_forward_is_what_numpy_says():
    a, b = lucid.tensor(A), lucid.tensor(B)
    np.testing.assert_array_equal((a * b - a / b).numpy(), A * B - A / B)
    np.testing.assert_array_equal((a @ b.transpose(0, 1)).numpy(), A @ B.T)
    np.testing.assert_allclose(a.softmax().sum(-1).numpy(), np.ones(3))
    np.testing.assert_array_equal(operations.Index.apply(a, index=(slice(None), 1)).numpy(), A[:, 1])


def test_transpose_swaps_two_dimensions_and_permute_orders_all():
    x = RANDOM.standard_normal((2, 3, 4))
    tensor = lucid.tensor(x)
    np.testing.assert_array_equal(tensor.transpose(0, -1).numpy(), x.swapaxes(0, -1))
    np.testing.assert_array_equal(tensor.permute(1, -1, 0).numpy(), x.transpose(1, 2, 0))
    np.testing.assert_array_equal(tensor.permute((1, 2, 0)).numpy(), x.transpose(1, 2, 0))


def test_the_greatest_elements_and_their_places():
    x = RANDOM.standard_normal((2, 3, 4))
    tensor = lucid.tensor(x)
    assert (tensor.max().item(), tensor.argmax().item()) == (x.max(), x.argmax())
    for axis in (0, 1, -1):
        for keepdims in (False, True):
            values, indices = tensor.max(axis, keepdims=keepdims)
            np.testing.assert_array_equal(values.numpy(), x.max(axis=axis, keepdims=keepdims))
            np.testing.assert_array_equal(indices.numpy(), x.argmax(axis=axis, keepdims=keepdims))
            np.testing.assert_array_equal(tensor.argmax(axis, keepdims).numpy(), indices.numpy())
            assert not indices.requires_grad


def test_equal_greatest_elements_share_the_gradient_and_along_an_axis_the_first_gets_it():
    x = lucid.tensor([[1.0, 3.0, 3.0], [3.0, 0.0, 3.0]], requires_grad=True)
    x.max().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[0, 0.25, 0.25], [0.25, 0, 0.25]])
    x.zero_grad()
    x.max(1).values.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[0, 1, 0], [1, 0, 0]])


@pytest.mark.filterwarnings("error")
def test_gradients_of_a_power_of_zero_at_zero_and_of_a_greatest_element_that_is_nan():
    x = lucid.tensor([0.0, 2.0], requires_grad=True)
    (x**0).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [0, 0])
    y = lucid.tensor([1.0, np.nan, 3.0], requires_grad=True)
    y.max().backward()
    np.testing.assert_array_equal(y.grad.numpy(), [0, 1, 0])


def test_cat_takes_arrays_too_and_says_what_does_not_fit():
    np.testing.assert_array_equal(lucid.cat([A, lucid.tensor(B)], axis=1).numpy(), np.concatenate([A, B], axis=1))
    with pytest.raises(ValueError, match="cat takes one tensor or more"):
        lucid.cat([])
    with pytest.raises(ValueError, match="must match exactly"):
        lucid.cat([A, B.T])


def test_T_is_for_matrices():  # noqa: N802
    np.testing.assert_array_equal(lucid.tensor(A).T.numpy(), A.T)
    with pytest.raises(ValueError, match=r"T is for two axes, not for shape \(4,\): use transpose or permute"):
        lucid.tensor(A[0]).T  # noqa: B018


def test_matmul_refuses_vectors():
    with pytest.raises(ValueError, match="two or more dimensions"):
        lucid.tensor(A) @ lucid.tensor(B[0])
