"""Invariant 4: the compiled kernels of attention agree with the reference."""

import numpy as np
import pytest
from agreement import assert_agrees, of_rows
from kernel_arguments import PROBABILITIES, dropout_of, normal, sequences_of

from lucid.kernels import reference
from lucid.kernels.arguments import NO_DROPOUT
from lucid.kernels.sequences import Sequences


class TestAttention:
    @pytest.mark.parametrize(
        ("lengths", "width", "heads"), [([1], 4, 2), ([3, 1, 2], 4, 2), ([20, 37, 36], 24, 3), ([130], 32, 1)]
    )
    @pytest.mark.parametrize("holes", [False, True])
    @pytest.mark.parametrize("probability", PROBABILITIES)
    def test_it_agrees_forward_and_backward(self, cpu, lengths, width, heads, holes, probability):
        sequences = sequences_of(lengths, holes)
        joined, gradient = normal(sum(lengths), 3 * width), normal(sum(lengths), width)
        settings = sequences, heads, of_rows(dropout_of(probability, len(lengths)), sequences)
        _, probabilities = assert_agrees(cpu, "attention", joined, *settings)
        assert_agrees(cpu, "attention_gradient", gradient, joined, probabilities, *settings, ulps=64)

    def test_a_sequence_may_be_empty(self, cpu):
        sequences = Sequences((0, 3, 3, 5), np.array([0, 1, 2, 8, 9]), 4)
        settings = sequences, 2, NO_DROPOUT
        joined, gradient = normal(5, 12), normal(5, 4)
        _, probabilities = assert_agrees(cpu, "attention", joined, *settings)
        assert_agrees(cpu, "attention_gradient", gradient, joined, probabilities, *settings, ulps=64)

    @pytest.mark.parametrize("probability", PROBABILITIES)
    def test_several_groups_of_heads_agree(self, cpu, probability):
        sequences = sequences_of([250, 30])
        settings = sequences, 5, of_rows(dropout_of(probability, 2), sequences)
        joined, gradient = normal(280, 30), normal(280, 10)
        _, probabilities = assert_agrees(cpu, "attention", joined, *settings)
        assert_agrees(cpu, "attention_gradient", gradient, joined, probabilities, *settings, ulps=64)

    @pytest.mark.parametrize("scale", [1e-6, 30.0, 1e6])
    def test_it_agrees_for_scores_of_every_size(self, cpu, scale):
        joined, settings = normal(9, 12), (sequences_of([9]), 2, NO_DROPOUT)
        joined[:, :4] *= np.float32(scale)
        expected = reference.attention(joined, *settings)[0]
        got = cpu.attention(joined, *settings)[0]
        np.testing.assert_allclose(got, expected, rtol=1e-5 * max(1, scale), atol=1e-5)

    def test_a_masked_key_has_no_weight_at_all_and_a_row_without_keys_is_uniform(self, cpu):
        mask = np.array([[True, True, False, True], [False] * 4])
        _, probabilities = cpu.attention(normal(8, 18), Sequences.unpadded(mask, mask), 2, NO_DROPOUT)
        first, second = probabilities.reshape(2, 2, 4, 4)
        np.testing.assert_array_equal(first[..., 2], 0)
        np.testing.assert_array_equal(second, 0.25)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_nan_and_infinity_propagate_within_their_sequence_only(self, cpu, bad):
        joined, gradient = normal(5, 12), normal(5, 4)
        joined[1, 2] = bad
        settings = sequences_of([3, 2]), 2, NO_DROPOUT
        with np.errstate(invalid="ignore"):
            output, probabilities = cpu.attention(joined, *settings)
            by_joined = cpu.attention_gradient(gradient, joined, probabilities, *settings)
        assert np.isnan(output[1, 2:]).all()
        assert np.isfinite(output[[0, 3, 4]]).all()
        assert all(not np.isfinite(part).all() for part in np.split(by_joined[:3], 3, axis=1))
        assert np.isfinite(by_joined[3:]).all()
