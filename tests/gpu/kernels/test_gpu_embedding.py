"""Invariant 4: the CUDA kernels of embeddings agree with the reference, on a GPU and in the emulation."""

import ml_dtypes
import numpy as np
import pytest
from kernel_arguments import RANDOM, normal

from lucid.kernels import reference
from lucid.kernels.cuda.sorting import sorted_by_id


@pytest.mark.parametrize("shape", [(2, 3), (40, 16)])
def test_rows_of_a_table_are_looked_up(machine, element, shape):
    table, ids = normal(*shape, dtype=element), RANDOM.integers(0, shape[0], (3, 7))
    np.testing.assert_array_equal(machine.run("embedding", table, ids)[0], table[ids])


@pytest.mark.parametrize("width", [3, 16])
@pytest.mark.parametrize("other", [np.float32, ml_dtypes.bfloat16])
def test_looked_up_rows_are_added_to_others(machine, element, width, other):
    table, ids = normal(40, width, dtype=element), RANDOM.integers(0, 40, (3, 7))
    addend = normal(3, 7, width, dtype=other)
    expected = addend + table[ids]
    for given in (addend, np.asfortranarray(addend)):
        [got] = machine.run("embedding", table, ids, given)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("padding_id", [None, 1])
@pytest.mark.parametrize(
    ("count", "vocabulary", "width"), [(21, 5, 10), (1, 3, 8), (300, 2, 16), (640, 40, 7), (0, 3, 4)]
)
def test_embedding_gradients_agree(machine, element, accumulate, padding_id, count, vocabulary, width):
    ids, gradient = RANDOM.integers(0, vocabulary, count), normal(count, width, dtype=element)
    got = normal(vocabulary, width)
    expected = got.astype(np.float64)
    machine.update("embedding_gradient", [gradient, ids, got], accumulate, padding_id)
    reference.embedding_gradient(gradient.astype(np.float64), ids, expected, accumulate, padding_id)
    machine.compare("embedding_gradient", "float32", got, expected, 64)


def test_gradients_of_activations_have_their_dtype(machine, element):
    """These are gradients of look-ups in activations, some rows of which have labels."""
    ids, gradient = np.array([7, 0, 3, 0, 0]), normal(5, 16, dtype=element)
    gradient[3:] = 0
    got = np.zeros((9, 16), element)
    machine.update("embedding_gradient", [gradient, ids, got], False, None)
    expected = np.zeros((9, 16), element)
    expected[ids[:3]] = gradient[:3]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("count", "bound"), [(0, 4), (1, 1), (511, 2), (1300, 256), (1025, 257), (2000, 70_000)])
def test_ids_are_sorted_and_equal_ones_keep_their_order(machine, count, bound):
    ids = RANDOM.integers(0, bound, count)
    got, order = map(machine.get, sorted_by_id(machine.put(ids), bound))
    np.testing.assert_array_equal(order, np.argsort(ids, kind="stable"))
    np.testing.assert_array_equal(got, ids[order])
