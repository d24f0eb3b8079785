"""Invariant 4: the CUDA kernels agree with the reference, which is given the same numbers in double precision.

Each test runs on a GPU, if there is one, and in the emulation. The emulation finds errors in the arithmetic, the
geometry and the arguments, but not a GPU's own approximations, or races between threads.
"""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from targets import TARGETS, assert_targets_are_heeded, call

from lucid.errors import ConfigError
from lucid.kernels import reference
from lucid.kernels.arguments import NO_DROPOUT, AdamSettings, Dropout, UpdateBuffers
from lucid.kernels.cuda.sorting import sorted_by_id
from lucid.kernels.sequences import Sequences
from lucid.kernels.targets import Target
from lucid.random import Coordinates

RANDOM = np.random.default_rng()
PURPOSE = 1 << 16
# Widths for wide and for single accesses, and for one warp or several per row; rows for one block and for several.
SHAPES = [(1, 1, 1), (2, 3, 5), (3, 1, 64), (2, 35, 33), (1, 66, 768)]
# Relative to the largest number, in spacings: float32 sums many numbers, bfloat16 is rounded a few times.
TOLERANCES = {"float32": 64, "bfloat16": 2}


@pytest.fixture(params=[None, 0.1, 0.5], ids=["no dropout", "dropout 0.1", "dropout 0.5"])
def drawn(request):
    """A function of the batch size that returns the dropout."""

    def of(samples):
        if request.param is None:
            return NO_DROPOUT
        coordinates = Coordinates.of(seed=1 << 40 | 9, step=4, samples=np.arange(samples) * 7 + 2)
        return Dropout(request.param, PURPOSE + 3, coordinates)

    return of


def normal(*shape, scale=1.0, dtype=np.float32):
    return (RANDOM.standard_normal(shape) * scale).astype(dtype)


@pytest.mark.parametrize("kind", ["gelu", "gelu_new", "relu"])
class TestActivation:
    @pytest.mark.parametrize("shape", [*SHAPES, (0, 4)])
    def test_it_agrees_forward_and_backward(self, machine, element, kind, shape):
        x, bias, gradient = normal(*shape, scale=3, dtype=element), normal(shape[-1]), normal(*shape, dtype=element)
        # The tail of a GELU, perhaps the only part, is a small difference of numbers of about this size.
        settings = {"spacings": TOLERANCES, "least": 1.0}
        machine.assert_agrees("activation", x, bias, kind, **settings)
        machine.assert_agrees("activation", x, None, kind, **settings)
        machine.assert_agrees("activation_gradient", gradient, x, bias, kind, **settings)

    def test_it_agrees_for_every_magnitude(self, machine, kind):
        size = np.float32(10) ** np.linspace(-30, 18, 4001, dtype=np.float32)
        x = np.concatenate([-size, size])[None]
        [y] = machine.run("activation", x, None, kind)
        np.testing.assert_allclose(y, reference.activation(x.astype(np.float64), None, kind), rtol=2e-6, atol=1e-6)
        slope, _ = machine.run("activation_gradient", np.ones_like(x), x, None, kind)
        expected = reference.activation_gradient(np.ones(x.shape), x.astype(np.float64), None, kind, None)
        np.testing.assert_allclose(slope, expected, rtol=2e-6, atol=1e-6)

    def test_nan_and_infinity_propagate(self, machine, kind):
        x = np.array([[np.nan, np.inf]], np.float32)
        assert not np.isfinite(machine.run("activation", x, None, kind)[0]).any()
        by_x, by_bias = machine.run("activation_gradient", x, np.ones_like(x), None, kind)
        assert not np.isfinite(by_x).any()
        assert not np.isfinite(by_bias).any()


@pytest.mark.parametrize("shape", [*SHAPES, (3,), (2, 3, 2, 5), (1, 1, 4097)])
@pytest.mark.parametrize("probability", [0.1, 0.9])
def test_dropout_equals_the_reference_bit_for_bit(machine, shape, probability):
    x = normal(*shape)
    for seed, step in ((0, 0), (2**64 - 1, 2**32 - 1)):
        coordinates = Coordinates.of(seed, step, np.arange(shape[0]) + 2**32 - 2)
        settings = x, Dropout(probability, PURPOSE, coordinates)
        np.testing.assert_array_equal(machine.run("dropout", *settings)[0], reference.dropout(*settings))


def test_token_rows_draw_the_dropout_of_their_grid(machine, element):
    grid, mask = normal(3, 70, 32, dtype=element), np.arange(70) < np.array([[70], [1], [25]])
    coordinates, sequences = Coordinates.of(7, 2, np.array([9, 4, 5])), Sequences.unpadded(mask, mask)
    [expected] = machine.run("dropout", grid, Dropout(0.3, PURPOSE, coordinates))
    of_rows = Dropout(0.3, PURPOSE, sequences.coordinates(coordinates))
    [got] = machine.run("dropout", sequences.rows_of(grid), of_rows)
    np.testing.assert_array_equal(got, expected[mask])


def test_nan_survives_dropout(machine):
    x = np.full((1, 1000), np.nan, np.float32)
    assert np.isnan(machine.run("dropout", x, Dropout(0.5, PURPOSE, Coordinates.of(0, 0, np.arange(1))))[0]).all()


class TestLayerNorm:
    @pytest.mark.parametrize("shape", [*SHAPES[1:], (0, 4), (2, 1040), (1, 1, 999)])
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
    def test_it_agrees_forward_and_backward(self, machine, element, shape, scale):
        x, gradient = normal(*shape, scale=scale, dtype=element), normal(*shape, dtype=element)
        weight, bias = normal(shape[-1]), normal(shape[-1])
        _, mean, reciprocal = machine.assert_agrees("layer_norm", x, weight, bias, 1e-12, spacings=TOLERANCES)
        arguments = gradient, x, weight, mean, reciprocal
        machine.assert_agrees("layer_norm_gradient", *arguments, spacings=TOLERANCES)

    def test_a_row_of_equal_numbers_is_finite(self, machine):
        ones = np.ones(3, np.float32)
        y, _, _ = machine.run("layer_norm", np.full((2, 3), 7, np.float32), ones, ones, 1e-12)
        np.testing.assert_array_equal(y, 1)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_nan_and_infinity_propagate_within_their_row_only(self, machine, bad):
        x, ones = normal(2, 40), np.ones(40, np.float32)
        x[1, 17] = bad
        y, _, _ = machine.run("layer_norm", x, ones, ones, 1e-12)
        assert np.isfinite(y[0]).all()
        assert np.isnan(y[1]).any()

    @pytest.mark.parametrize("shape", [*SHAPES[1:], (2, 5), (2, 1040)])
    def test_with_dropout_and_residual_it_agrees_forward_and_backward(self, machine, element, shape, drawn, expected):
        x, residual, gradient = (normal(*shape, dtype=element) for _ in range(3))
        bias, weight, shift = (normal(shape[-1]) for _ in range(3))
        dropout = drawn(shape[0])
        arguments = x, bias, residual, weight, shift, 1e-12, dropout
        y, total, *statistics = found = machine.run("dropout_add_layer_norm", *arguments)
        # The kernel normalises the stored sum: if all its numbers are nearly equal, rounding changes the result much.
        expected_total = expected("dropout_add_layer_norm", *arguments)[1]
        expected_rest = expected("layer_norm", total, weight, shift, 1e-12)
        kind = element.name
        for got, right in zip((total, y, *statistics), (expected_total, *expected_rest), strict=True):
            machine.compare("dropout_add_layer_norm", kind, got.astype(np.float64), right, TOLERANCES[kind])
        arguments = gradient, found[1], weight, *found[2:], dropout
        machine.assert_agrees("dropout_add_layer_norm_gradient", *arguments, spacings=TOLERANCES)

    def test_token_rows_draw_the_dropout_of_their_grid(self, machine):
        grid, mask = normal(3, 20, 12), np.arange(20) < np.array([[20], [3], [7]])
        coordinates, sequences = Coordinates.of(7, 2, np.array([9, 4, 5])), Sequences.unpadded(mask, mask)
        bias, rows = normal(12), sequences.rows_of(grid)
        of_grid, of_rows = (Dropout(0.3, PURPOSE, each) for each in (coordinates, sequences.coordinates(coordinates)))
        expected = machine.run("dropout_add_layer_norm", grid, bias, grid, bias, bias, 1e-12, of_grid)[0]
        got = machine.run("dropout_add_layer_norm", rows, bias, rows, bias, bias, 1e-12, of_rows)[0]
        np.testing.assert_array_equal(got, expected[mask])


def sequences_of(lengths, holes=False):
    """Sequences of these lengths from a grid one column longer than the longest; with holes, some rows are no keys."""
    length = max(lengths) + 1
    mask = np.arange(length) < np.array(lengths)[:, None]
    if holes:
        mask[:, :-2] &= RANDOM.random((len(lengths), length - 2)) < 0.7
        mask[np.arange(len(lengths)), np.array(lengths) - 1] = True
    return Sequences.unpadded(mask, mask)


def settings_of(machine, settings):
    """The same settings, with their arrays on the device."""
    return tuple(map(machine.put, settings))


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
            *map(machine.put, (gradient, joined)), saved, *settings_of(machine, settings)
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
        settings = settings_of(machine, (sequences, 1, dropout))
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
            _, saved = machine.kernels.attention(
                machine.put(joined), *settings_of(machine, (sequences, heads, dropout))
            )
            others = joined.nbytes // 3 + heads * 201 * 4
            assert sum(array.nbytes for array in saved if array is not None) == others + bits // 8

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_nan_and_infinity_propagate_within_their_sequence_only(self, machine, element, bad):
        joined, gradient = normal(5, 96, dtype=element), normal(5, 32, dtype=element)
        joined[1, 16] = bad
        settings = settings_of(machine, (sequences_of([3, 2]), 2, NO_DROPOUT))
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
            machine.kernels.attention(*settings_of(machine, (normal(3, 387), sequences_of([3]), 1, NO_DROPOUT)))


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


@pytest.mark.parametrize(("count", "bound"), [(0, 4), (1, 1), (511, 2), (1300, 256), (1025, 257), (2000, 70_000)])
def test_ids_are_sorted_and_equal_ones_keep_their_order(machine, count, bound):
    ids = RANDOM.integers(0, bound, count)
    got, order = map(machine.get, sorted_by_id(machine.put(ids), bound))
    np.testing.assert_array_equal(order, np.argsort(ids, kind="stable"))
    np.testing.assert_array_equal(got, ids[order])


def test_gradients_of_activations_have_their_dtype(machine, element):
    """These are gradients of look-ups in activations, some rows of which have labels."""
    ids, gradient = np.array([7, 0, 3, 0, 0]), normal(5, 16, dtype=element)
    gradient[3:] = 0
    got = np.zeros((9, 16), element)
    machine.update("embedding_gradient", [gradient, ids, got], False, None)
    expected = np.zeros((9, 16), element)
    expected[ids[:3]] = gradient[:3]
    np.testing.assert_array_equal(got, expected)


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


@pytest.mark.parametrize("width", [2, 7, 40, 1100])
def test_argmax_returns_the_first_of_equals(machine, element, width):
    x = RANDOM.integers(-3, 4, (33, width)).astype(element)
    np.testing.assert_array_equal(machine.run("argmax", x)[0], x.astype(np.float64).argmax(axis=1))
    assert machine.run("argmax", x.reshape(3, 11, width))[0].shape == (3, 11)


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (65, 7), (4, 50, 33), (1100, 264)])
def test_bias_gradients_agree(machine, element, shape):
    machine.assert_agrees(
        "linear_bias_gradient", normal(*shape, dtype=element), spacings={"float32": 16, "bfloat16": 1e-3}
    )


BOUNDS = [[0, 1], [0, 1, 4, 1023], [0, 16_384, 32_768, 70_016]]


@pytest.mark.parametrize("bounds", BOUNDS)
def test_sums_of_squares_agree_in_double_precision(machine, bounds):
    x, bounds = normal(bounds[-1]), np.array(bounds)
    sums = machine.update("squared_sums", [x], bounds)
    assert sums.dtype == np.float64
    np.testing.assert_allclose(sums, reference.squared_sums(x.astype(np.float64), bounds), rtol=1e-13)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sum_of_squares_with_nan_or_infinity_is_not_finite(machine, bad):
    x = normal(70_000)
    x[66_000] = bad
    sums = machine.update("squared_sums", [x], np.array([0, 30_000, 60_000, 70_000]))
    assert np.isfinite(sums).tolist() == [True, True, False]


def test_the_root_of_a_sum_agrees(machine):
    for count in (1, 600, 7000):
        sums = RANDOM.random(count)
        [root] = machine.run("root_of_sum", sums)
        assert root.shape == ()
        assert root == pytest.approx(reference.root_of_sum(sums), rel=1e-14)


SETTINGS = AdamSettings(betas=(0.9, 0.98), epsilon=1e-6, weight_decay=0.1)
# The learning rate, the gradient scale, and both bias corrections.
FACTORS = np.array([1e-2, 0.3, 1 / 0.19, 1 / 0.2])


def buffers_of(count):
    return UpdateBuffers(normal(count), normal(count), normal(count), normal(count) ** 2)


def in_doubles(buffers):
    return UpdateBuffers(*(array.astype(np.float64) for array in buffers[:4]))


@pytest.mark.parametrize("count", [1, 1023, 20_000])
def test_adamw_agrees(machine, count):
    buffers = buffers_of(count)
    expected, got, factors, bounds = (
        in_doubles(buffers),
        machine.put(buffers),
        machine.put(FACTORS),
        np.array([0, count]),
    )
    for _ in range(2):
        machine.kernels.adamw(got, bounds, factors, SETTINGS)
        reference.adamw(expected, bounds, FACTORS, SETTINGS)
    for one, other in zip(got[:4], expected[:4], strict=True):
        machine.compare("adamw", "float32", machine.get(one), other, 64)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_lamb_agrees(machine, bounds):
    bounds, buffers = np.array(bounds), buffers_of(bounds[-1])
    expected, got, factors = in_doubles(buffers), machine.put(buffers), machine.put(FACTORS)
    rates = 1e-2 * np.arange(1.0, len(bounds))
    for _ in range(2):
        squares = machine.kernels.lamb_moments(got, bounds, factors, SETTINGS)
        of_reference = reference.lamb_moments(expected, bounds, FACTORS, SETTINGS)
        np.testing.assert_allclose(machine.get(squares), of_reference, rtol=1e-5)
        machine.kernels.lamb_update(got, bounds, machine.put(rates), factors, SETTINGS)
        reference.lamb_update(expected, bounds, rates, FACTORS, SETTINGS)
    for one, other in zip(got[:4], expected[:4], strict=True):
        machine.compare("lamb", "float32", machine.get(one), other, 64)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_a_measured_update_has_the_same_bits_and_the_sums_of_each_block(machine, bounds):
    bounds, before = np.array(bounds), buffers_of(bounds[-1])
    factors, rates = machine.put(FACTORS), machine.put(1e-2 * np.arange(1.0, len(bounds)))
    for name, arguments in (("adamw", (bounds, factors)), ("lamb_update", (bounds, rates, factors))):
        plain, measured = machine.put(before), machine.put(before)
        squares = machine.put(np.full((len(bounds) - 1, 2), np.nan))
        update = getattr(machine.kernels, name)
        update(plain, *arguments, SETTINGS)
        update(measured, *arguments, SETTINGS, squares)
        after, again = ([machine.get(array) for array in buffers[:4]] for buffers in (plain, measured))
        np.testing.assert_array_equal(again, after)
        of_elements = np.stack([(before.values - after[0]).astype(float), after[0].astype(float)], axis=1) ** 2
        expected = [of_elements[start:stop].sum(axis=0) for start, stop in pairwise(bounds)]
        np.testing.assert_allclose(machine.get(squares), expected, rtol=1e-12)


@pytest.mark.parametrize("count", [1023, 4096])
def test_optimizers_round_the_new_values_as_they_write_them(machine, count):
    copy = np.full(count, np.nan, ml_dtypes.bfloat16)
    buffers = machine.put(buffers_of(count)._replace(bfloat16_copy=copy))

    def assert_rounded():
        expected = machine.get(buffers.values).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(machine.get(buffers.bfloat16_copy), expected)

    bounds = np.array([0, count])
    machine.kernels.adamw(buffers, bounds, machine.put(FACTORS), SETTINGS)
    assert_rounded()
    machine.kernels.lamb_update(buffers, bounds, machine.put(np.array([0.1])), machine.put(FACTORS), SETTINGS)
    assert_rounded()


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_without_a_finite_scale_an_update_changes_nothing(machine, scale):
    bounds, before = np.array([0, 2000, 5000]), buffers_of(5000)
    after, updates = machine.put(before), machine.put(np.array([6]))
    factors = machine.kernels.update_factors(1e-2, machine.put(np.array(scale)), updates, SETTINGS.betas)
    machine.kernels.adamw(after, bounds, factors, SETTINGS)
    assert not machine.get(machine.kernels.lamb_moments(after, bounds, factors, SETTINGS)).any()
    machine.kernels.lamb_update(after, bounds, machine.put(np.ones(2)), factors, SETTINGS)
    np.testing.assert_array_equal([machine.get(array) for array in after[:4]], before[:4])
    assert machine.get(updates).tolist() == [6]


@pytest.mark.parametrize("betas", [(0.9, 0.999), None])
def test_factors_belong_to_the_next_update(machine, betas):
    updates, expected_updates = machine.put(np.zeros(1, np.int64)), np.zeros(1, np.int64)
    for _ in range(3):
        got = machine.kernels.update_factors(machine.put(np.array(1e-3)), 0.5, updates, betas)
        expected = reference.update_factors(1e-3, 0.5, expected_updates, betas)
        np.testing.assert_allclose(machine.get(got), expected, rtol=1e-13)
        np.testing.assert_array_equal(machine.get(updates), expected_updates)


def test_the_rates_of_lamb_agree(machine):
    squares, first_blocks = RANDOM.random((1500, 2)), np.array([0, 1, 600, 601, 602, 1400])
    squares[600, 0] = squares[601, 1] = 0
    for adapting in (0, 5, 6):
        got = machine.kernels.lamb_rates(machine.put(squares), first_blocks, adapting, machine.put(FACTORS))
        expected = reference.lamb_rates(squares, first_blocks, adapting, FACTORS)
        np.testing.assert_allclose(machine.get(got), expected, rtol=1e-13)


@pytest.mark.parametrize("count", [999, 4096])
def test_rounding_is_to_the_nearest_ties_to_even_and_keeps_what_is_not_finite(machine, count):
    x = RANDOM.integers(0, 2**32, count, dtype=np.uint32)
    x[:100] = x[:100] & 0xFFFF0000 | 0x8000
    x = x.view(np.float32)
    x[100:103] = np.nan, np.inf, -np.inf
    [y] = machine.run("round_to_bfloat16", x)
    with np.errstate(invalid="ignore"):
        expected = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(y.astype(np.float32), expected)


def arguments_of_gradients(element):
    """The arguments, without targets, of all kernels that write gradients to targets, by name."""
    x, gradient = (normal(2, 70, 40, dtype=element) for _ in range(2))
    weight, statistics = normal(40), np.abs(normal(140, 1))
    dropout = Dropout(0.3, PURPOSE, Coordinates.of(3, 1, np.arange(2)))
    return {
        "linear_bias_gradient": (gradient,),
        "activation_gradient": (gradient, x, weight, "gelu"),
        "layer_norm_gradient": (gradient, x, weight, statistics, statistics),
        "dropout_add_layer_norm_gradient": (gradient, x, weight, statistics, statistics, dropout),
    }


class TestTargets:
    @pytest.mark.parametrize("name", TARGETS)
    def test_gradients_by_parameters_are_added_or_left_out_as_asked(self, machine, element, name):
        arguments = map(machine.put, arguments_of_gradients(element)[name])
        assert_targets_are_heeded(machine.kernels, name, *arguments, to_host=machine.get)

    @pytest.mark.parametrize("accumulate", [False, True])
    def test_targets_may_have_another_dtype_or_strides(self, machine, accumulate):
        [expected] = machine.run("linear_bias_gradient", x := normal(70, 8))
        for dtype in (np.float32, ml_dtypes.bfloat16):
            room = machine.put(np.ones((8, 2), dtype))
            machine.kernels.linear_bias_gradient(machine.put(x), Target(room[:, 0], accumulate))
            got = machine.get(room).astype(np.float32)
            np.testing.assert_allclose(got[:, 0], expected + accumulate, rtol=2**-8, atol=2**-8)
            np.testing.assert_array_equal(got[:, 1], 1)


class TestOrder:
    """Results have the same bits in every run and at every position of a row."""

    def test_a_second_run_gives_the_same_bits(self, machine, element):
        x, gradient = normal(2, 200, 40, dtype=element), normal(2, 200, 40, dtype=element)
        weight, ids = normal(40), RANDOM.integers(0, 3, (2, 200))
        dropout = Dropout(0.3, PURPOSE, Coordinates.of(3, 1, np.arange(2)))

        def run():
            made = machine.run("dropout_add_layer_norm", x, weight, x, weight, weight, 1e-12, dropout)
            arguments = gradient, made[1], weight, *made[2:], dropout
            table = normal(3, 40) * 0
            machine.update("embedding_gradient", [gradient, ids, table], False, None)
            by_activation = machine.run("activation_gradient", gradient, x, weight, "gelu")
            return [*made, *machine.run("dropout_add_layer_norm_gradient", *arguments), *by_activation, table]

        for one, other in zip(run(), run(), strict=True):
            np.testing.assert_array_equal(one, other)

    # The emulation can run the threads of a block in any order; on a GPU this is one more run.
    @pytest.mark.parametrize("order", ["last first", "1", "2"])
    def test_the_order_of_threads_and_copies_changes_no_bit(self, machine, element, order, monkeypatch):
        x, gradient, bias = normal(150, 64, dtype=element), normal(150, 64, dtype=element), normal(64)
        ids, sequences = RANDOM.integers(0, 3, 150), Sequences.padded(np.zeros((2, 75)), None)
        joined, dropout = normal(150, 192, dtype=element), Dropout(0.3, PURPOSE, Coordinates.of(3, 1, np.arange(150)))
        of_rows = Dropout(0.3, PURPOSE, sequences.coordinates(Coordinates.of(3, 1, ids[:2])))

        def run():
            made = machine.run("dropout_add_layer_norm", x, bias, x, bias, bias, 1e-12, dropout)
            made += machine.run("dropout_add_layer_norm_gradient", gradient, made[1], bias, *made[2:], dropout)
            made += machine.run("activation_gradient", gradient, x, bias, "gelu")
            made += machine.run("linear_bias_gradient", gradient)
            losses = machine.run("cross_entropy", x, ids, -100)
            made += *losses, *machine.run("cross_entropy_gradient", bias[ids], x, ids, losses[1], -100)
            made += machine.run("argmax", x)
            table = np.zeros((3, 64), np.float32)
            machine.update("embedding_gradient", [gradient, ids, table], False, None)
            settings = settings_of(machine, (sequences, 2, of_rows))
            output, saved = machine.kernels.attention(machine.put(joined), *settings)
            by_joined = machine.kernels.attention_gradient(machine.put(gradient), machine.put(joined), saved, *settings)
            return *made, table, machine.get(output), machine.get(by_joined)

        first = run()
        monkeypatch.setenv("EMULATED_ORDER", order)
        for one, other in zip(first, run(), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_a_sample_gives_the_same_bits_alone_and_in_a_batch(self, machine, element):
        x, residual, weight = normal(3, 50, 48, dtype=element), normal(3, 50, 48, dtype=element), normal(48)
        together, alone = (Dropout(0.2, PURPOSE, Coordinates.of(3, 1, np.array(each))) for each in ([0, 1, 2], [2]))
        tail = weight, weight, 1e-12
        whole = machine.run("dropout_add_layer_norm", x, weight, residual, *tail, together)[0]
        part = machine.run("dropout_add_layer_norm", x[2:], weight, residual[2:], *tail, alone)[0]
        np.testing.assert_array_equal(whole[2:], part)


def test_kernels_take_arrays_that_are_not_in_c_order(machine, element):
    x = normal(6, 8, dtype=element)
    on_device = machine.put(x)
    got = machine.get(machine.kernels.activation(on_device.T, None, "relu"))
    np.testing.assert_array_equal(got, np.maximum(x.T, 0))
    [got] = call(machine.kernels, "linear_bias_gradient", on_device[:, ::2])
    np.testing.assert_allclose(machine.get(got), x[:, ::2].astype(np.float32).sum(axis=0), rtol=1e-5, atol=1e-5)


def test_kernels_take_arrays_with_any_alignment(machine, element):
    x = normal(1 + 4 * 16, dtype=element)
    got = machine.get(machine.kernels.activation(machine.put(x)[1:].reshape(4, 16), None, "relu"))
    np.testing.assert_array_equal(got, np.maximum(x[1:].reshape(4, 16), 0))


def test_dropout_follows_new_values_of_its_counters(machine, element, expected):
    x, coordinates = normal(3, 40, dtype=element), Coordinates.of(1 << 40 | 9, 2**31 + 5, np.arange(3) + 2**33)
    dropout = Dropout(0.4, PURPOSE, machine.put(Coordinates.of(1 << 40 | 9, 4, np.arange(3))))
    machine.run("dropout", x, dropout)
    dropout.coordinates.counters[...] = machine.put(coordinates.counters)
    [got] = machine.run("dropout", x, dropout)
    right = expected("dropout", x, Dropout(0.4, PURPOSE, coordinates))
    machine.compare("dropout", element.name, got.astype(np.float64), right, TOLERANCES[element.name])
    assert (got == 0).any()
