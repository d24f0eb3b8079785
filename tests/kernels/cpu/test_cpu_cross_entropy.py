"""Invariant 4: the compiled kernels of the cross-entropy agree with the reference."""

import numpy as np
import pytest
from agreement import assert_agrees
from kernel_arguments import RANDOM, normal

from lucid.kernels import reference


class TestCrossEntropy:
    @pytest.mark.parametrize(("rows", "vocabulary"), [(0, 5), (1, 1), (3, 2), (5, 33), (9, 30_522)])
    @pytest.mark.parametrize("scale", [1.0, 1e4])
    def test_it_agrees_forward_and_backward(self, cpu, rows, vocabulary, scale):
        logits, gradient = normal(rows, vocabulary, scale=scale), normal(rows)
        labels = RANDOM.integers(0, vocabulary, rows)
        labels[::3] = -100
        _, log_sum = assert_agrees(cpu, "cross_entropy", logits, labels, -100)
        arguments = gradient, logits, labels, log_sum, -100
        # A logit of this size is itself rounded to this much.
        assert_agrees(cpu, "cross_entropy_gradient", *arguments, ulps=16 * max(1, scale / 100))

    @pytest.mark.parametrize("kernels", ["cpu", "reference"])
    def test_columns_behind_the_vocabulary_do_not_count(self, cpu, kernels):
        kernels = cpu if kernels == "cpu" else reference
        logits, gradient, labels = normal(5, 64), normal(5), RANDOM.integers(0, 50, 5)
        logits[:, 50:], logits[4, 0], labels[0] = 1e4, np.nan, -100
        counted = np.ascontiguousarray(logits[:, :50])
        losses, log_sum = kernels.cross_entropy(logits, labels, -100, 50)
        np.testing.assert_array_equal((losses, log_sum), kernels.cross_entropy(counted, labels, -100))
        got = kernels.cross_entropy_gradient(gradient, logits, labels, log_sum, -100, 50)
        np.testing.assert_array_equal(
            got[:, :50], kernels.cross_entropy_gradient(gradient, counted, labels, log_sum, -100)
        )
        assert not got[:, 50:].any()
        np.testing.assert_array_equal(kernels.argmax(logits[:4], 50), counted[:4].argmax(axis=1))

    def test_argmax_is_the_first_of_the_greatest_and_nan_is_greater(self, cpu):
        x = np.array([[1, 3, 3, 2], [-np.inf] * 4, [2, np.nan, 5, np.nan], [2, 5, -np.nan, 1]], np.float32)
        for kernels in (cpu, reference):
            assert kernels.argmax(x).tolist() == [1, 0, 1, 2]
            assert kernels.argmax(x[:2].reshape(2, 1, 4), 1).tolist() == [[0], [0]]

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_nan_and_infinity_propagate(self, cpu, bad):
        logits, labels = normal(2, 40), np.array([3, 3])
        logits[1, 17] = bad
        losses, log_sum = cpu.cross_entropy(logits, labels, -100)
        assert np.isfinite(losses).tolist() == [True, False]
        gradient = cpu.cross_entropy_gradient(np.ones(2, np.float32), logits, labels, log_sum, -100)
        assert np.isfinite(gradient[0]).all()
        assert np.isnan(gradient[1]).any()
