"""Invariant 4: the compiled kernels agree with the reference, which is given the same numbers in double precision."""

import itertools
import threading
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from targets import TARGETS, assert_targets_are_heeded, call

from lucid.kernels import reference, threads
from lucid.kernels.arguments import NO_DROPOUT, AdamSettings, Dropout, UpdateBuffers
from lucid.kernels.sequences import Sequences
from lucid.random import Coordinates

RANDOM = np.random.default_rng(5)
# A unit in the last place of float32, relative.
ULP = 2.0**-23
PURPOSE = 1 << 16
SHAPES = [(1, 1, 1), (2, 3, 5), (3, 1, 64), (2, 70, 33), (1, 129, 768)]


@pytest.fixture(scope="module")
def cpu():
    """The compiled kernels, regardless of the environment."""
    from lucid.kernels import cpu

    cpu.load()
    return cpu


@pytest.fixture(params=[None, 0.1, 0.5], ids=["no dropout", "dropout 0.1", "dropout 0.5"])
def drawn(request):
    """A function of the batch size that returns the dropout."""

    def of(samples):
        if request.param is None:
            return NO_DROPOUT
        coordinates = Coordinates.of(seed=1 << 40 | 9, step=4, samples=np.arange(samples) * 7 + 2)
        return Dropout(request.param, PURPOSE + 3, coordinates)

    return of


def normal(*shape, scale=1.0):
    return (RANDOM.standard_normal(shape) * scale).astype(np.float32)


def doubled(value):
    return value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype == np.float32 else value


def assert_agrees(cpu, name, *arguments, ulps=16.0, **settings):
    """Compare a kernel's results with the reference's, to `ulps` of the greatest number in each."""
    got = call(cpu, name, *arguments, **settings)
    expected = call(reference, name, *map(doubled, arguments), **settings)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=ulps * ULP, atol=ulps * ULP * np.abs(other).max(initial=0))
    return got


@pytest.mark.parametrize("kind", ["gelu", "gelu_new", "relu"])
class TestActivation:
    @pytest.mark.parametrize("shape", [*SHAPES, (0, 4)])
    def test_it_agrees_forward_and_backward(self, cpu, kind, shape):
        x, bias, gradient = normal(*shape, scale=3), normal(shape[-1]), normal(*shape)
        assert_agrees(cpu, "activation", x, bias, kind)
        assert_agrees(cpu, "activation", x, None, kind)
        assert_agrees(cpu, "activation_gradient", gradient, x, bias, kind, ulps=64)

    def test_it_agrees_for_every_magnitude(self, cpu, kind):
        size = np.float32(10) ** np.linspace(-30, 18, 4001, dtype=np.float32)
        x = np.concatenate([-size, size])[None]
        assert_agrees(cpu, "activation", x, None, kind)
        assert_agrees(cpu, "activation_gradient", np.ones_like(x), x, None, kind)

    def test_nan_and_infinity_propagate(self, cpu, kind):
        x = np.array([[np.nan, np.inf]], np.float32)
        assert not np.isfinite(cpu.activation(x, None, kind)).any()
        assert np.isnan(cpu.activation(np.zeros((1, 1), np.float32), np.float32([np.nan]), kind)).all()
        by_x, by_bias = call(cpu, "activation_gradient", x, np.ones_like(x), None, kind)
        assert not np.isfinite(by_x).any()
        assert not np.isfinite(by_bias).any()


def test_gelu_is_accurate_to_some_units_in_the_last_place_even_in_its_tail(cpu):
    x = np.linspace(-12.5, 8, 20_001, dtype=np.float32)[None]
    expected = reference.activation(x.astype(np.float64), None, "gelu")
    np.testing.assert_allclose(cpu.activation(x, None, "gelu"), expected, rtol=16 * ULP)


@pytest.mark.parametrize("shape", [*SHAPES, (3,), (2, 3, 2, 5), (1, 1, 4097)])
@pytest.mark.parametrize("probability", [0.1, 0.9])
def test_dropout_equals_the_reference_bit_for_bit(cpu, shape, probability):
    x = normal(*shape)
    for seed, step in ((0, 0), (2**64 - 1, 2**32 - 1)):
        coordinates = Coordinates.of(seed, step, np.arange(shape[0]) + 2**32 - 2)
        dropout = Dropout(probability, PURPOSE, coordinates)
        np.testing.assert_array_equal(cpu.dropout(x, dropout), reference.dropout(x, dropout))


def test_token_rows_draw_the_dropout_of_their_grid(cpu):
    grid, mask = normal(3, 70, 33), np.arange(70) < np.array([[70], [1], [25]])
    dropout = Dropout(0.3, PURPOSE, Coordinates.of(7, 2, np.array([9, 4, 5])))
    sequences = Sequences.unpadded(mask, mask)
    expected = cpu.dropout(grid, dropout)[mask]
    for kernel in (cpu, reference):
        got = kernel.dropout(sequences.rows_of(grid), of_rows(dropout, sequences))
        np.testing.assert_array_equal(got, expected)


def test_nan_survives_dropout(cpu):
    x = np.full((1, 1000), np.nan, np.float32)
    assert np.isnan(cpu.dropout(x, Dropout(0.5, PURPOSE, Coordinates.of(0, 0, np.arange(1))))).all()


class TestLayerNorm:
    @pytest.mark.parametrize("shape", [*SHAPES[1:], (0, 4)])
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
    def test_it_agrees_forward_and_backward(self, cpu, shape, scale):
        x, weight, bias, gradient = normal(*shape, scale=scale), normal(shape[-1]), normal(shape[-1]), normal(*shape)
        _, mean, reciprocal = assert_agrees(cpu, "layer_norm", x, weight, bias, 1e-12)
        assert_agrees(cpu, "layer_norm_gradient", gradient, x, weight, mean, reciprocal, ulps=64)

    def test_a_row_of_equal_numbers_is_finite(self, cpu):
        y, _, _ = cpu.layer_norm(np.full((2, 3), 7, np.float32), *np.ones((2, 3), np.float32), 1e-12)
        np.testing.assert_array_equal(y, 1)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_nan_and_infinity_propagate_within_their_row_only(self, cpu, bad):
        x, ones = normal(2, 40), np.ones(40, np.float32)
        x[1, 17] = bad
        y, _, _ = cpu.layer_norm(x, ones, ones, 1e-12)
        assert np.isfinite(y[0]).all()
        assert np.isnan(y[1]).any()

    @pytest.mark.parametrize("shape", [*SHAPES[1:], (2, 5)])
    def test_with_dropout_and_residual_it_agrees_forward_and_backward(self, cpu, shape, drawn):
        C = shape[-1]
        x, residual, gradient = normal(*shape), normal(*shape), normal(*shape)
        dropout = drawn(shape[0])
        arguments = x, normal(C), residual, normal(C), normal(C), 1e-12, dropout
        _, total, mean, reciprocal = assert_agrees(cpu, "dropout_add_layer_norm", *arguments)
        arguments = gradient, total, normal(C), mean, reciprocal, dropout
        assert_agrees(cpu, "dropout_add_layer_norm_gradient", *arguments, ulps=64)


def sequences_of(lengths, holes=False):
    """Sequences of these lengths from a grid one column longer than the longest; with holes, some rows are no keys."""
    length = max(lengths) + 1
    mask = np.arange(length) < np.array(lengths)[:, None]
    if holes:
        mask[:, :-2] &= RANDOM.random((len(lengths), length - 2)) < 0.7
        mask[np.arange(len(lengths)), np.array(lengths) - 1] = True
    return Sequences.unpadded(mask, mask)


def of_rows(dropout, sequences):
    """The same dropout, with the coordinates of the rows."""
    if dropout.coordinates is None:
        return dropout
    return replace(dropout, coordinates=sequences.coordinates(dropout.coordinates))


class TestAttention:
    @pytest.mark.parametrize(
        ("lengths", "width", "heads"), [([1], 4, 2), ([3, 1, 2], 4, 2), ([20, 37, 36], 24, 3), ([130], 32, 1)]
    )
    @pytest.mark.parametrize("holes", [False, True])
    def test_it_agrees_forward_and_backward(self, cpu, lengths, width, heads, holes, drawn):
        sequences = sequences_of(lengths, holes)
        joined, gradient = normal(sum(lengths), 3 * width), normal(sum(lengths), width)
        settings = sequences, heads, of_rows(drawn(len(lengths)), sequences)
        _, probabilities = assert_agrees(cpu, "attention", joined, *settings)
        assert_agrees(cpu, "attention_gradient", gradient, joined, probabilities, *settings, ulps=64)

    def test_a_sequence_may_be_empty(self, cpu):
        sequences = Sequences((0, 3, 3, 5), np.array([0, 1, 2, 8, 9]), 4)
        settings = sequences, 2, NO_DROPOUT
        joined, gradient = normal(5, 12), normal(5, 4)
        _, probabilities = assert_agrees(cpu, "attention", joined, *settings)
        assert_agrees(cpu, "attention_gradient", gradient, joined, probabilities, *settings, ulps=64)

    def test_several_groups_of_heads_agree(self, cpu, drawn):
        sequences = sequences_of([250, 30])
        settings = sequences, 5, of_rows(drawn(2), sequences)
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


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("padding_id", [None, 1])
def test_embedding_gradients_agree(cpu, accumulate, padding_id):
    ids, gradient = RANDOM.integers(0, 5, (3, 7)), normal(3, 7, 10)
    got = normal(5, 10)
    expected = got.astype(np.float64)
    cpu.embedding_gradient(gradient, ids, got, accumulate, padding_id)
    reference.embedding_gradient(doubled(gradient), ids, expected, accumulate, padding_id)
    np.testing.assert_allclose(got, expected, rtol=16 * ULP, atol=16 * ULP)


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (65, 7), (4, 50, 33)])
def test_bias_gradients_agree(cpu, shape):
    assert_agrees(cpu, "linear_bias_gradient", normal(*shape))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("rows", [1, 64, 1000])
def test_bias_gradients_of_some_columns_equal_those_of_all(cpu, dtype, rows):
    gradient = normal(rows, 99).astype(dtype)
    whole, *parts = (call(cpu, "linear_bias_gradient", gradient[:, part])[0] for part in np.s_[:, :33, 33:])
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def arguments_of_gradients():
    """The arguments, without targets, of all kernels that write gradients to targets, by name."""
    x, gradient, weight, statistics = normal(2, 70, 33), normal(2, 70, 33), normal(33), np.abs(normal(140, 1))
    dropout = Dropout(0.3, PURPOSE, Coordinates.of(3, 1, np.arange(2)))
    return {
        "linear_bias_gradient": (gradient,),
        "activation_gradient": (gradient, x, weight, "gelu"),
        "layer_norm_gradient": (gradient, x, weight, statistics, statistics),
        "dropout_add_layer_norm_gradient": (gradient, x, weight, statistics, statistics, dropout),
    }


@pytest.mark.parametrize("name", TARGETS)
def test_gradients_by_parameters_are_added_or_left_out_as_asked(cpu, name):
    arguments = arguments_of_gradients()[name]
    assert_targets_are_heeded(cpu, name, *arguments)
    assert_targets_are_heeded(reference, name, *arguments)


BOUNDS = [[0, 1], [0, 1, 4, 1023], [0, 16_384, 32_768, 70_001]]


@pytest.mark.parametrize("bounds", BOUNDS)
def test_sums_of_squares_agree_in_double_precision(cpu, bounds):
    x, bounds = normal(bounds[-1]), np.array(bounds)
    sums = cpu.squared_sums(x, bounds)
    assert sums.dtype == np.float64
    np.testing.assert_allclose(sums, reference.squared_sums(x.astype(np.float64), bounds), rtol=1e-13)


def test_a_sum_of_squares_with_an_infinity_is_not_finite(cpu):
    for bad in (np.nan, np.inf):
        x = normal(70_000)
        x[66_000] = bad
        sums = cpu.squared_sums(x, np.array([0, 30_000, 60_000, 70_000]))
        assert np.isfinite(sums).tolist() == [True, True, False]


SETTINGS = AdamSettings(betas=(0.9, 0.98), epsilon=1e-6, weight_decay=0.1)
# The learning rate, the gradient scale, and both bias corrections.
FACTORS = np.array([1e-2, 0.3, 1 / 0.19, 1 / 0.2])


def buffers_of(count, bfloat16_copy=None):
    return UpdateBuffers(normal(count), normal(count), normal(count), normal(count) ** 2, bfloat16_copy)


@pytest.mark.parametrize("count", [1, 1023, 70_001])
def test_adamw_agrees(cpu, count):
    got, bounds = buffers_of(count), np.array([0, count])
    expected = UpdateBuffers(*map(doubled, got))
    for _ in range(2):
        cpu.adamw(got, bounds, FACTORS, SETTINGS)
        reference.adamw(expected, bounds, FACTORS, SETTINGS)
    for one, other in zip(got[:4], expected[:4], strict=True):
        np.testing.assert_allclose(one, other, rtol=64 * ULP, atol=64 * ULP)


def lamb_steps(kernels, buffers, bounds):
    """Take two steps in place, with a different rate in each block, and return the sums of squares."""
    rates = 1e-2 * np.arange(1.0, len(bounds))
    squares = []
    for _ in range(2):
        squares.append(kernels.lamb_moments(buffers, bounds, FACTORS, SETTINGS))
        kernels.lamb_update(buffers, bounds, rates, FACTORS, SETTINGS)
    return squares


@pytest.mark.parametrize("bounds", BOUNDS)
def test_lamb_agrees(cpu, bounds):
    count, bounds = bounds[-1], np.array(bounds)
    got = buffers_of(count)
    expected = UpdateBuffers(*map(doubled, got))
    squares = lamb_steps(cpu, got, bounds), lamb_steps(reference, expected, bounds)
    np.testing.assert_allclose(*squares, rtol=64 * ULP)
    for one, other in zip(got[:4], expected[:4], strict=True):
        np.testing.assert_allclose(one, other, rtol=64 * ULP, atol=64 * ULP)


def updates_of(kernels, bounds):
    """The updates of AdamW and LAMB, as functions of their buffers and of where they write sums of squares."""
    rates = 1e-2 * np.arange(1.0, len(bounds))
    return (
        lambda buffers, squares=None: kernels.adamw(buffers, bounds, FACTORS, SETTINGS, squares),
        lambda buffers, squares=None: kernels.lamb_update(buffers, bounds, rates, FACTORS, SETTINGS, squares),
    )


@pytest.mark.parametrize("bounds", BOUNDS)
def test_a_measured_update_has_the_same_bits_and_the_sums_of_each_block(cpu, bounds):
    bounds = np.array(bounds)
    for kernels in (cpu, reference):
        for update in updates_of(kernels, bounds):
            before = buffers_of(bounds[-1])
            plain, measured = (UpdateBuffers(*(array.copy() for array in before[:4])) for _ in range(2))
            squares = np.full((len(bounds) - 1, 2), np.nan)
            update(plain)
            update(measured, squares)
            np.testing.assert_array_equal(measured[:4], plain[:4])
            of_elements = (
                np.stack([(before.values - plain.values).astype(float), plain.values.astype(float)], axis=1) ** 2
            )
            expected = [of_elements[start:stop].sum(axis=0) for start, stop in itertools.pairwise(bounds)]
            np.testing.assert_allclose(squares, expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_without_a_finite_scale_an_update_changes_nothing(cpu, scale):
    bounds, factors = np.array([0, 2000, 5000]), FACTORS.copy()
    factors[1] = scale
    for kernels in (cpu, reference):
        before = buffers_of(5000)[:4]
        after = UpdateBuffers(*(array.copy() for array in before))
        kernels.adamw(after, bounds, factors, SETTINGS)
        assert not kernels.lamb_moments(after, bounds, factors, SETTINGS).any()
        kernels.lamb_update(after, bounds, np.ones(2), factors, SETTINGS)
        np.testing.assert_array_equal(after[:4], before)


def test_optimizers_round_the_new_values_too(cpu):
    for kernels in (cpu, reference):
        buffers = buffers_of(70_001, np.full(70_001, np.nan, ml_dtypes.bfloat16))
        for update in updates_of(kernels, np.array([0, 30_000, 70_001])):
            update(buffers)
            np.testing.assert_array_equal(buffers.bfloat16_copy, buffers.values.astype(ml_dtypes.bfloat16))


class TestDivision:
    """Results do not depend on the position of a row, or on the number of threads."""

    @pytest.fixture
    def every_kernel(self, cpu):
        """A function that runs kernels over 3 x 200 rows and returns all their results."""
        x, residual, gradient = (normal(3, 200, 331) for _ in range(3))
        weight, bias = normal(331), normal(331)
        logits, labels = normal(600, 331), RANDOM.integers(0, 331, 600)
        dropout = Dropout(0.3, PURPOSE, Coordinates.of(3, 1, np.arange(3)))
        values, bounds = normal(400_000), np.arange(0, 400_001, 12_500)

        def run():
            y, total, mean, reciprocal = cpu.dropout_add_layer_norm(x, bias, residual, weight, bias, 1e-12, dropout)
            _, log_sum = cpu.cross_entropy(logits, labels, -100)
            optimized = [values.copy() for _ in range(2)]
            cpu.adamw(UpdateBuffers(optimized[0], values, optimized[1], values**2), bounds, FACTORS, SETTINGS)
            by_lamb = UpdateBuffers(values.copy(), values, values.copy(), values**2)
            squares = lamb_steps(cpu, by_lamb, bounds)
            joined, sequences = x.reshape(600, 331)[:, :312], sequences_of([200, 130, 270])
            settings = sequences, 4, of_rows(dropout, sequences)
            attended, probabilities = cpu.attention(joined, *settings)
            return [
                attended, cpu.attention_gradient(attended, joined, probabilities, *settings),
                y, total, log_sum, *optimized, *by_lamb[:4], *squares, cpu.squared_sums(values, bounds),
                cpu.dropout(x, dropout),
                cpu.activation(x, bias, "gelu"), *call(cpu, "activation_gradient", gradient, x, bias, "gelu"),
                *cpu.layer_norm(x, weight, bias, 1e-12), *call(cpu, "linear_bias_gradient", gradient),
                *call(cpu, "layer_norm_gradient", gradient, total, weight, mean, reciprocal),
                *call(cpu, "dropout_add_layer_norm_gradient", gradient, total, weight, mean, reciprocal, dropout),
                cpu.cross_entropy_gradient(log_sum, logits, labels, log_sum, -100),
            ]  # fmt: skip

        return run

    def test_any_number_of_threads_gives_the_same_bits(self, every_kernel, monkeypatch):
        monkeypatch.setattr(threads, "_limit", 1)
        alone = every_kernel()
        monkeypatch.setattr(threads, "_limit", 3)
        for one, other in zip(alone, every_kernel(), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_work_of_any_size_uses_the_allowed_threads(self, monkeypatch):
        monkeypatch.setattr(threads, "_limit", 5)
        before = set(threading.enumerate())
        for parts in (2, 3, 4, 5, 9):
            done = []
            threads.split(parts, 1_000_000, done.append)
            assert sorted(number for part in done for number in range(parts)[part]) == list(range(parts))
        assert len(set(threading.enumerate()) - before) <= 4

    def test_a_sequence_gives_the_same_bits_alone_and_in_a_batch(self, cpu):
        joined, gradient = normal(70, 24), normal(70, 8)
        dropout = Dropout(0.3, PURPOSE, Coordinates.of(3, 1, np.arange(3)))
        together = sequences_of([20, 40, 10])
        alone = Sequences.unpadded(np.ones((1, 41), bool), np.arange(41)[None] < 40)
        of_all = together, 2, of_rows(dropout, together)
        of_one = alone, 2, of_rows(Dropout(0.3, PURPOSE, Coordinates.of(3, 1, np.array([1]))), alone)
        whole, probabilities = cpu.attention(joined, *of_all)
        part, own = cpu.attention(joined[20:60], *of_one)
        np.testing.assert_array_equal(whole[20:60], part)
        whole = cpu.attention_gradient(gradient, joined, probabilities, *of_all)
        np.testing.assert_array_equal(
            whole[20:60], cpu.attention_gradient(gradient[20:60], joined[20:60], own, *of_one)
        )

    def test_a_sample_gives_the_same_bits_alone_and_in_a_batch(self, cpu):
        x, residual, weight, bias = normal(3, 50, 33), normal(3, 50, 33), normal(33), normal(33)
        together, alone = (Dropout(0.2, PURPOSE, Coordinates.of(3, 1, np.array(each))) for each in ([0, 1, 2], [2]))
        tail = weight, bias, 1e-12
        whole = cpu.dropout_add_layer_norm(x, bias, residual, *tail, together)[0]
        part = cpu.dropout_add_layer_norm(x[2:], bias, residual[2:], *tail, alone)[0]
        np.testing.assert_array_equal(whole[2:], part)
        for count in range(1, 34):
            part = cpu.activation(x[..., :count].copy(), bias[:count].copy(), "gelu")
            np.testing.assert_array_equal(part, cpu.activation(x, bias, "gelu")[..., :count])


def test_kernels_take_arrays_that_are_read_only_or_not_in_c_order(cpu):
    x = normal(6, 5)
    x.flags.writeable = False
    np.testing.assert_array_equal(cpu.activation(x.T, None, "relu"), np.maximum(x.T, 0))
    stretched = np.broadcast_to(np.float32(2), (6, 5))
    np.testing.assert_array_equal(call(cpu, "linear_bias_gradient", stretched)[0], np.full(5, 12))
