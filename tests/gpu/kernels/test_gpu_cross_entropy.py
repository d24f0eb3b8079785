"""Invariant 4: the CUDA kernels of the cross-entropy agree with the reference, on a GPU and in the emulation."""

import numpy as np
import pytest
from kernel_arguments import RANDOM, normal
from tolerances import TOLERANCES

from lucid.kernels import reference


class TestCrossEntropy:
    @pytest.mark.parametrize(("rows", "vocabulary"), [(0, 5), (1, 1), (3, 2), (5, 33), (4, 1536), (3, 30_522)])
    @pytest.mark.parametrize("scale", [1.0, 1e4])
    def test_it_agrees_forward_and_backward(self, machine, element, rows, vocabulary, scale):
        logits, gradient = normal(rows, vocabulary, scale=scale, dtype=element), normal(rows)
        labels = RANDOM.integers(0, vocabulary, rows)
        labels[::3] = -100
        _, log_sum = machine.assert_agrees("cross_entropy", logits, labels, -100, spacings=TOLERANCES)
        log_sum = reference.cross_entropy(logits.astype(np.float64), labels, -100)[1].astype(np.float32)
        got = machine.run("cross_entropy_gradient", gradient, logits, labels, log_sum, -100)[0].astype(np.float64)
        doubles = gradient.astype(np.float64), logits.astype(np.float64), labels, log_sum.astype(np.float64), -100
        expected = reference.cross_entropy_gradient(*doubles)
        # The difference to a sum of this size is itself rounded to this much.
        spacings = TOLERANCES[element.name] * (max(1, scale / 100) if element == np.float32 else 1)
        machine.compare("cross_entropy_gradient", element.name, got, expected, spacings)

    @pytest.mark.parametrize(("width", "vocabulary"), [(64, 1), (64, 63), (1600, 1537), (30_528, 30_522)])
    def test_columns_behind_the_vocabulary_do_not_count(self, machine, element, width, vocabulary):
        logits, gradient, labels = normal(5, width, dtype=element), normal(5), RANDOM.integers(0, vocabulary, 5)
        logits[:, vocabulary:], logits[4, 0], labels[0] = 1e4, np.nan, -100
        counted = np.ascontiguousarray(logits[:, :vocabulary])
        losses, log_sum = machine.run("cross_entropy", logits, labels, -100, vocabulary=vocabulary)
        expected = machine.run("cross_entropy", counted, labels, -100)
        np.testing.assert_allclose([losses[:4], log_sum[:4]], [each[:4] for each in expected], rtol=1e-6)
        arguments = labels, log_sum, -100
        [got] = machine.run("cross_entropy_gradient", gradient, logits, *arguments, vocabulary=vocabulary)
        [expected] = machine.run("cross_entropy_gradient", gradient, counted, *arguments)
        np.testing.assert_array_equal(got[:, :vocabulary].astype(np.float32), expected.astype(np.float32))
        assert not got[:, vocabulary:].any()
        [got] = machine.run("argmax", logits[:4], vocabulary=vocabulary)
        np.testing.assert_array_equal(got, counted[:4].argmax(axis=1))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_nan_and_infinity_propagate(self, machine, bad):
        logits, labels = normal(2, 40), np.array([3, 3])
        logits[1, 17] = bad
        losses, log_sum = machine.run("cross_entropy", logits, labels, -100)
        assert np.isfinite(losses).tolist() == [True, False]
        arguments = np.ones(2, np.float32), logits, labels, log_sum, -100
        [gradient] = machine.run("cross_entropy_gradient", *arguments)
        assert np.isfinite(gradient[0]).all()
        assert np.isnan(gradient[1]).any()


@pytest.mark.parametrize("width", [2, 7, 40, 1100])
def test_argmax_returns_the_first_of_equals(machine, element, width):
    x = RANDOM.integers(-3, 4, (33, width)).astype(element)
    np.testing.assert_array_equal(machine.run("argmax", x)[0], x.astype(np.float64).argmax(axis=1))
    assert machine.run("argmax", x.reshape(3, 11, width))[0].shape == (3, 11)
