"""Invariant 4: the CUDA kernels of attention agree with the reference, on a GPU and in the emulation."""

from itertools import pairwise

import numpy as np
import pytest
from kernel_arguments import PURPOSE, normal, sequences_of

from lucid.errors import ConfigError
from lucid.kernels import reference
from lucid.kernels.arguments import NO_DROPOUT, Dropout
from lucid.kernels.sequences import Sequences
from lucid.random import Coordinates

# The weights of the values, and those of the gradients, are rounded as well.
ATTENTION_TOLERANCES = {"float32": 64, "bfloat16": 8}


class TestAttention:
    def dropout(self, sequences, probability, samples):
        if probability == 0:
            return NO_DROPOUT
        coordinates = Coordinates.of(seed=1 << 40 | 9, step=4, samples=np.asarray(samples))
        return Dropout(probability, PURPOSE + 3, sequences.coordinates(coordinates))

    def assert_agrees(self, machine, sequences, heads, dropout, joined, gradient, tolerances=ATTENTION_TOLERANCES):
        settings = sequences, heads, dropout
        output, saved = machine.kernels.attention(*map(machine.put, (joined, *settings)))
        by_joined = machine.kernels.attention_gradient(
            *map(machine.put, (gradient, joined)), saved, *machine.put(settings)
        )
        joined, gradient = joined.astype(np.float64), gradient.astype(np.float64)
        expected, probabilities = reference.attention(joined, *settings)
        expected_by_joined = reference.attention_gradient(gradient, joined, probabilities, *settings)
        for name, got, right in (
            ("attention", output, expected),
            ("attention_gradient", by_joined, expected_by_joined),
        ):
            kind = got.dtype.name
            assert got.shape == right.shape
            machine.compare(name, kind, machine.get(got).astype(np.float64), right, tolerances[kind])

    # One row, a warp's 16, a block's 64, and more; columns for tensor cores, and others.
    @pytest.mark.parametrize(
        ("lengths", "head", "heads", "holes", "probability"),
        [
            ([1, 17, 15], 5, 2, True, 0.1),
            ([16, 64], 8, 1, False, 0.0),
            ([130, 63], 16, 1, False, 0.5),
            ([65, 1], 64, 1, True, 0.1),
            ([17], 64, 2, False, 0.0),
            ([66, 3], 16, 2, True, 0.0),
        ],
    )
    def test_it_agrees_forward_and_backward(self, machine, element, lengths, head, heads, holes, probability):
        sequences, width = sequences_of(lengths, holes), head * heads
        dropout = self.dropout(sequences, probability, np.arange(len(lengths)) * 7 + 2)
        arrays = normal(sum(lengths), 3 * width, dtype=element), normal(sum(lengths), width, dtype=element)
        self.assert_agrees(machine, sequences, heads, dropout, *arrays)

    @pytest.mark.parametrize("head", [48, 100, 128])
    def test_it_agrees_for_heads_of_any_size(self, machine, element, head):
        sequences = sequences_of([37], holes=True)
        dropout = self.dropout(sequences, 0.3, [6])
        arrays = normal(37, 3 * head, dtype=element), normal(37, head, dtype=element)
        self.assert_agrees(machine, sequences, 1, dropout, *arrays)

    # If the grid's length is a multiple of 4, the iteration over keys begins with a block of random words.
    @pytest.mark.parametrize("length", [144, 145])
    def test_packed_sequences_draw_at_their_positions_in_the_row(self, machine, element, length):
        ids = np.zeros((2, length), int)
        for row, starts in enumerate([[0, 5, 69, 72, 142], [0, 127]]):
            for number, (start, stop) in enumerate(pairwise(starts)):
                ids[row, start:stop] = number + 1
        sequences = Sequences.packed(ids)
        dropout = self.dropout(sequences, 0.4, [8, 5])
        rows = len(sequences.slots)
        arrays = normal(rows, 96, dtype=element), normal(rows, 32, dtype=element)
        self.assert_agrees(machine, sequences, 2, dropout, *arrays)

    def test_empty_sequences_and_filler_rows_agree(self, machine, element):
        slots = np.concatenate([np.arange(20), np.zeros(7, int)])
        sequences = Sequences((0, 9, 9, 20, 27, 27), slots, 20)
        dropout = self.dropout(sequences, 0.4, [8])
        self.assert_agrees(machine, sequences, 1, dropout, normal(27, 48, dtype=element), normal(27, 16, dtype=element))

    def test_a_masked_key_has_no_weight_at_all_and_a_row_without_keys_is_uniform(self, machine, element):
        mask = np.array([[True, True, False, True], [False] * 4])
        sequences, joined = Sequences.unpadded(mask, mask), normal(8, 48, dtype=element)
        joined[2, 32:] = 1e30
        [output, *_] = machine.kernels.attention(*map(machine.put, (joined, sequences, 1, NO_DROPOUT)))
        output = machine.get(output).astype(np.float32)
        assert np.abs(output[:4]).max() < 10
        mean = joined[4:, 32:].astype(np.float32).mean(axis=0)
        np.testing.assert_allclose(output[4:], np.tile(mean, (4, 1)), rtol=1e-2, atol=1e-2)
        self.assert_agrees(
            machine, sequences, 1, NO_DROPOUT, normal(8, 48, dtype=element), normal(8, 16, dtype=element)
        )

    # With these sizes the rounded scale of the scores, times the least number, errs in either direction.
    @pytest.mark.parametrize("head", [16, 24, 32, 40, 64, 80, 96, 128])
    def test_keys_that_do_not_count_may_fill_whole_tiles(self, machine, element, head):
        mask = np.ones((3, 150), bool)
        mask[0, :70] = mask[1, 5:140] = mask[2, :149] = False
        sequences = Sequences.unpadded(mask, mask)
        dropout = self.dropout(sequences, 0.2, [4, 7, 1])
        arrays = normal(450, 3 * head, dtype=element), normal(450, head, dtype=element)
        self.assert_agrees(machine, sequences, 1, dropout, *arrays)

    def test_a_second_run_gives_the_same_bits(self, machine, element):
        sequences = sequences_of([70, 3], holes=True)
        dropout = self.dropout(sequences, 0.4, [0, 1])
        joined, gradient = map(machine.put, (normal(73, 48, dtype=element), normal(73, 16, dtype=element)))
        settings = machine.put((sequences, 1, dropout))
        made = []
        for _ in range(2):
            output, saved = machine.kernels.attention(joined, *settings)
            made.append((output, machine.kernels.attention_gradient(gradient, joined, saved, *settings)))
        for one, other in zip(*made, strict=True):
            np.testing.assert_array_equal(machine.get(one), machine.get(other))

    def test_large_scores_do_not_overflow(self, machine, element):
        sequences = sequences_of([20])
        joined, gradient = normal(20, 48, scale=100, dtype=element), normal(20, 16, dtype=element)
        # The rounding error of a score of 10,000 is a relative error of its exponential.
        tolerances = {"float32": 2**16, "bfloat16": 8}
        self.assert_agrees(machine, sequences, 1, NO_DROPOUT, joined, gradient, tolerances)

    def test_backward_needs_one_bit_for_each_score_with_dropout(self, machine, element):
        sequences, heads, joined = sequences_of([130, 7, 64]), 2, normal(201, 96, dtype=element)
        for probability, bits in ((0.0, 0), (0.1, 2 * (256 + 3 * 64) * 192)):
            dropout = self.dropout(sequences, probability, [0, 1, 2])
            _, saved = machine.kernels.attention(machine.put(joined), *machine.put((sequences, heads, dropout)))
            others = joined.nbytes // 3 + heads * 201 * 4
            assert sum(array.nbytes for array in saved if array is not None) == others + bits // 8

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_nan_and_infinity_propagate_within_their_sequence_only(self, machine, element, bad):
        joined, gradient = normal(5, 96, dtype=element), normal(5, 32, dtype=element)
        joined[1, 16] = bad
        settings = machine.put((sequences_of([3, 2]), 2, NO_DROPOUT))
        joined = machine.put(joined)
        output, saved = machine.kernels.attention(joined, *settings)
        by_joined = machine.kernels.attention_gradient(machine.put(gradient), joined, saved, *settings)
        output, by_joined = (machine.get(array).astype(np.float32) for array in (output, by_joined))
        assert np.isnan(output[1, 16:]).all()
        assert np.isfinite(output[[0, 2, 3, 4]]).all()
        assert np.isnan(by_joined[1, 16:32]).all()
        assert np.isfinite(by_joined[3:]).all()

    def test_heads_that_are_too_wide_are_refused(self, machine):
        with pytest.raises(ConfigError, match=r"heads of 129 columns are too wide.*take 128"):
            machine.kernels.attention(*machine.put((normal(3, 387), sequences_of([3]), 1, NO_DROPOUT)))
