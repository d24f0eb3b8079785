"""The fused operations agree with their definitions and with finite differences."""

import math
from collections import Counter

import numpy as np
import pytest
from gradient_check import check_gradients

import lucid
from lucid import kernels, random
from lucid.backend import as_one
from lucid.kernels import reference
from lucid.kernels.sequences import Sequences
from lucid.nn import Linear, Module, flatten, functional

RANDOM = np.random.default_rng(2)
X = RANDOM.standard_normal((2, 3, 4))
SAMPLES = np.array([5, 9])
CATALOGUE = [name for name in dir(kernels.Kernels) if not name.startswith("_")]
COORDINATES = random.Coordinates.of(seed=7, step=3, samples=SAMPLES)


def test_linear():
    weight, bias = RANDOM.standard_normal((5, 4)), RANDOM.standard_normal(5)
    output = functional.linear(lucid.tensor(X), lucid.tensor(weight), lucid.tensor(bias))
    np.testing.assert_allclose(output.numpy(), X @ weight.T + bias)
    check_gradients(functional.linear, X, weight, bias)
    check_gradients(functional.linear, X, weight)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_bias_gets_its_gradient_with_that_of_the_weight_and_without(dtype):
    x, weights = X.reshape(6, 4).astype(dtype), [RANDOM.standard_normal((n, 4)).astype(dtype) for n in (5, 2)]
    for learn in (True, False):
        layers = [(lucid.tensor(w, requires_grad=learn), lucid.tensor(w[:, 0], requires_grad=True)) for w in weights]
        for times in (1, 2):
            functional.joined_linear(lucid.tensor(x), *layers).sum().backward()
            functional.linear(lucid.tensor(x), *layers[0]).sum().backward()
            for uses, (weight, bias) in zip((2, 1), layers, strict=True):
                np.testing.assert_array_equal(bias.grad.numpy(), np.full(len(weight.data), 6 * uses * times, dtype))
                assert (weight.grad is not None) == learn


def test_parameters_that_were_computed_get_their_gradients():
    weight, vector = RANDOM.standard_normal((4, 4)), RANDOM.standard_normal(4)
    check_gradients(lambda x, w, b: functional.linear(x, w * 2, b * 3), X, weight, vector)
    check_gradients(lambda x, b: functional.activation(x, "gelu", b * 2), X, vector)
    check_gradients(lambda x, w, b: functional.layer_norm(x, w * 2, b * 2, 1e-5), X, vector, vector, tolerance=1e-6)


def test_a_leaf_that_is_several_inputs_gets_all_their_gradients():
    square, vector = RANDOM.standard_normal((4, 4)), RANDOM.standard_normal(4)
    check_gradients(lambda x: functional.linear(x, x), square)
    check_gradients(lambda x, both: functional.layer_norm(x, both, both, 1e-5), X, vector, tolerance=1e-6)
    check_gradients(lambda x, w, b: functional.joined_linear(x, (w, b), (w, b)), X.reshape(6, 4), square, vector)


@pytest.mark.parametrize("kind", ["gelu", "gelu_new", "relu"])
def test_activations(kind):
    expected = {
        "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
        "gelu_new": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "relu": lambda x: max(x, 0.0),
    }[kind]
    output = functional.activation(lucid.tensor(X), kind)
    np.testing.assert_allclose(output.numpy(), np.vectorize(expected)(X), rtol=1e-12, atol=1e-14)
    check_gradients(lambda x: functional.activation(x, kind), X)
    bias = RANDOM.standard_normal(4)
    with_bias = functional.activation(lucid.tensor(X), kind, lucid.tensor(bias))
    np.testing.assert_array_equal(with_bias.numpy(), functional.activation(lucid.tensor(X + bias), kind).numpy())
    check_gradients(lambda x, b: functional.activation(x, kind, b), X, bias)


def test_layer_norm():
    weight, bias = RANDOM.standard_normal(4), RANDOM.standard_normal(4)
    output = functional.layer_norm(lucid.tensor(X), lucid.tensor(weight), lucid.tensor(bias), 1e-12).numpy()
    normal = (output - bias) / weight
    np.testing.assert_allclose(normal.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(normal.std(-1), 1, atol=1e-9)
    check_gradients(lambda x, w, b: functional.layer_norm(x, w, b, 1e-5), X, weight, bias, tolerance=1e-6)


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_dropout_add_layer_norm_is_what_its_name_says(probability):
    bias, residual, weight, shift = (RANDOM.standard_normal(shape) for shape in [4, (2, 3, 4), 4, 4])

    def composed(x, bias, residual, weight, shift):
        with random.at(COORDINATES):
            return functional.layer_norm(
                functional.dropout(x + bias, probability, site=2) + residual, weight, shift, 1e-5
            )

    def fused(*inputs):
        with random.at(COORDINATES):
            return functional.dropout_add_layer_norm(*inputs, 1e-5, probability, site=2)

    inputs = X, bias, residual, weight, shift
    expected, got = (function(*map(lucid.tensor, inputs)).numpy() for function in (composed, fused))
    np.testing.assert_array_equal(got, expected)
    check_gradients(fused, *inputs, tolerance=1e-6)


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_rows_that_go_through_a_product_and_past_it_get_both_gradients(probability):
    weight, bias, scale, shift = (RANDOM.standard_normal(shape) for shape in [(4, 4), 4, 4, 4])

    def layer(x, weight, bias, scale, shift):
        # Not a leaf, so that its gradient comes together in backward alone.
        x = x * 2
        with random.at(COORDINATES):
            y = functional.linear(x, weight)
            return functional.dropout_add_layer_norm(y, bias, x, scale, shift, 1e-5, probability)

    check_gradients(layer, X, weight, bias, scale, shift, tolerance=1e-6)


def test_a_gradient_that_others_hold_is_not_added_to():
    x, weight = lucid.tensor(X.reshape(6, 4), requires_grad=True), RANDOM.standard_normal((4, 4))
    rows = x * 1
    through = functional.linear(rows, lucid.tensor(weight))
    # Made last, and so the first in backward: its gradient is the given array.
    past = rows.reshape(6, 4)
    given = np.ones((6, 4))
    (past + through).backward(given)
    np.testing.assert_array_equal(given, 1)
    np.testing.assert_allclose(x.grad.numpy(), 1 + given @ weight)


def test_rows_that_are_looked_up_multiplied_and_passed_on_get_all_gradients():
    weight, ids = RANDOM.standard_normal((4, 4)), np.array([2, 0, 2])

    def several(x, weight):
        x = x * 2
        return functional.linear(x, weight)[ids] + functional.embedding(ids, x) + x[ids] + x[:3]

    check_gradients(several, X.reshape(6, 4), weight)


def test_embedding_adds_the_gradients_of_a_repeated_id():
    ids = np.array([[1, 1, 0], [4, 1, 2]])
    table = RANDOM.standard_normal((5, 4))
    np.testing.assert_array_equal(functional.embedding(ids, lucid.tensor(table)).numpy(), table[ids])
    check_gradients(lambda t: functional.embedding(ids, t), table)


def test_embedding_adds_its_rows_to_others():
    ids, table, addend = np.array([[1, 1, 0], [4, 1, 2]]), RANDOM.standard_normal((5, 4)), X
    together = functional.embedding(ids, lucid.tensor(table), addend=lucid.tensor(addend))
    np.testing.assert_array_equal(together.numpy(), addend + table[ids])
    check_gradients(lambda t, a: functional.embedding(ids, t, addend=a), table, addend)


def test_joined_linear_maps_are_linear_maps_side_by_side():
    x, shapes = X.reshape(6, 4), [(5, 4), (2, 4), (5, 4)]
    weights, biases = (
        [RANDOM.standard_normal(shape) for shape in shapes],
        [RANDOM.standard_normal(n) for n, _ in shapes],
    )

    def joined(x, *parameters):
        return functional.joined_linear(x, *zip(parameters[:3], parameters[3:], strict=True))

    expected = np.concatenate([x @ weight.T + bias for weight, bias in zip(weights, biases, strict=True)], axis=1)
    np.testing.assert_allclose(joined(*map(lucid.tensor, (x, *weights, *biases))).numpy(), expected)
    check_gradients(joined, x, *weights, *biases)


class TestJoinedLinear:
    """Maps that are joined are one product where their parameters lie one behind the other, and the same map then."""

    @pytest.fixture
    def products(self, monkeypatch):
        """How often each kernel was called."""
        calls = Counter()

        def counted(name, kernel):
            def call(*arguments):
                calls[name] += 1
                return kernel(*arguments)

            return call

        for name in CATALOGUE:
            monkeypatch.setattr(reference, name, counted(name, getattr(reference, name)))
        return calls

    class Pair(Module):
        def __init__(self):
            lucid.manual_seed(1)
            super().__init__()
            self.one, self.two = Linear(4, 16, 1.0), Linear(4, 8, 1.0)
            self.join(self.one.weight, self.two.weight)
            self.join(self.one.bias, self.two.bias)
            self.to(np.float64)

        def forward(self, x):
            return functional.joined_linear(x, *((part.weight, part.bias) for part in (self.one, self.two)))

    def backward(self, pair, x, frozen=None):
        """Return the output, the gradient by the rows, and those by the parameters, of two micro-batches."""
        for parameter in pair.parameters():
            parameter.requires_grad_(parameter is not getattr(pair.two, frozen or "", None))
        rows = lucid.tensor(x, requires_grad=True)
        for _ in range(2):
            y = pair(rows)
            (y * y).sum().backward()
        learned = [parameter for parameter in pair.parameters() if parameter.requires_grad]
        return [y.numpy(), rows.grad.numpy(), *(parameter.grad.numpy() for parameter in learned)]

    @pytest.mark.parametrize("frozen", [None, "weight", "bias"])
    def test_one_product_of_all_has_the_outputs_and_gradients_of_one_each(self, products, frozen):
        x = X.reshape(6, 4)
        expected = self.backward(self.Pair(), x, frozen)
        assert products["linear"] == products["linear_input_gradient"] == 2 * 2
        products.clear()
        flat_pair = self.Pair()
        flatten(flat_pair)
        for got, one in zip(self.backward(flat_pair, x, frozen), expected, strict=True):
            np.testing.assert_allclose(got, one, rtol=1e-12, atol=1e-14)
        assert products["linear"] == products["linear_input_gradient"] == 2
        assert products["linear_weight_gradient"] == {None: 2, "weight": 2, "bias": 4}[frozen]

    def test_arrays_that_are_adjacent_by_chance_are_not_joined(self):
        room = np.arange(24.0)
        whole = [room[:12].reshape(3, 4), room[12:].reshape(3, 4)]
        np.testing.assert_array_equal(as_one(whole), room.reshape(6, 4))
        for apart in (
            [whole[1], whole[0]], [whole[0], whole[1].copy()], [whole[0], whole[0]], [whole[0], whole[1].T],
            [room[:12].reshape(3, 4), room[13:21].reshape(2, 4)], [whole[0], whole[1].reshape(4, 3)],
            [whole[0], whole[1].view(np.int64)],
        ):  # fmt: skip
            assert as_one(apart) is None


def naive_attention(joined, mask, heads):
    """Attention of sequences joined [B, T, 3C] with keys mask [B, T]."""
    B, T, width = joined.shape
    q, k, v = np.split(joined, 3, axis=2)
    output = np.zeros_like(q)
    D = width // 3 // heads
    for b in range(B):
        for h in range(heads):
            part = slice(h * D, (h + 1) * D)
            for t in range(T):
                scores = np.array([q[b, t, part] @ k[b, s, part] / math.sqrt(D) for s in range(T)])
                weights = np.exp(scores) * mask[b]
                output[b, t, part] = weights @ v[b, :, part] / weights.sum()
    return output


JOINED = RANDOM.standard_normal((2, 3, 12))


def test_attention_with_a_mask_is_its_definition():
    mask = np.array([[True, False, True], [True, True, True]])
    sequences = Sequences.padded(mask, mask)
    output = functional.attention(lucid.tensor(JOINED.reshape(6, 12)), sequences, heads=2)
    np.testing.assert_allclose(output.numpy(), naive_attention(JOINED, mask, 2).reshape(6, 4), rtol=1e-12)
    check_gradients(lambda x: functional.attention(x, sequences, 2), JOINED.reshape(6, 12))


def test_attention_without_padding_agrees_on_the_remaining_rows():
    mask = np.array([[True, False, True], [True, False, False]])
    sequences = Sequences.unpadded(mask, mask)
    rows = sequences.rows_of(JOINED)
    output = functional.attention(lucid.tensor(rows), sequences, heads=2)
    expected = naive_attention(JOINED, mask, 2).reshape(6, 4)[[0, 1, 2, 3]]
    np.testing.assert_allclose(output.numpy(), expected, rtol=1e-12)
    check_gradients(lambda x: functional.attention(x, sequences, 2), rows)


def test_attention_without_any_key_is_finite():
    mask = np.zeros((2, 3), dtype=bool)
    sequences = Sequences.unpadded(mask, mask)
    assert sequences.bounds == (0, 3, 6)
    assert np.isfinite(functional.attention(lucid.tensor(JOINED.reshape(6, 12)), sequences, heads=2).numpy()).all()


def test_dropout_in_attention_has_the_gradient_of_its_own_mask():
    mask = np.array([[True, True, False], [True, True, True]])
    for sequences in (Sequences.padded(mask, mask), Sequences.unpadded(mask, mask)):
        rows = sequences.rows_of(JOINED)

        def dropped(x, sequences=sequences):
            with random.at(sequences.coordinates(COORDINATES)):
                return functional.attention(x, sequences, 2, dropout_probability=0.5, site=3)

        assert not np.allclose(dropped(lucid.tensor(rows)).numpy(), sequences.rows_of(naive_attention(JOINED, mask, 2)))
        check_gradients(dropped, rows)


def test_cross_entropy_ignores_rows_with_the_ignored_label():
    logits = RANDOM.standard_normal((5, 7)) * 10
    labels = np.array([3, -100, 0, 6, -100])
    shifted = logits - logits.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    counted = [0, 2, 3]
    expected = -log_probabilities[counted, labels[counted]]
    for reduction, value in {"sum": expected.sum(), "mean": expected.mean()}.items():
        got = functional.cross_entropy(lucid.tensor(logits), labels, reduction=reduction)
        np.testing.assert_allclose(got.item(), value, rtol=1e-12)
    each = functional.cross_entropy(lucid.tensor(logits), labels, reduction="none").numpy()
    np.testing.assert_array_equal(each[[1, 4]], 0)
    check_gradients(lambda x: functional.cross_entropy(x, labels), logits)


def test_cross_entropy_of_huge_logits_is_finite():
    loss = functional.cross_entropy(lucid.tensor(np.array([[1e4, 0.0]])), np.array([1]))
    assert loss.item() == pytest.approx(1e4)


def test_cross_entropy_without_labels_is_zero():
    assert functional.cross_entropy(lucid.tensor(X[0]), np.full(3, -100)).item() == 0


class TestDropout:
    x = lucid.tensor(np.ones((2, 64, 64)))

    def dropped(self, x, coordinates=COORDINATES, site=1, probability=0.3):
        with random.at(coordinates):
            return functional.dropout(x, probability, site).numpy()

    def test_it_drops_with_the_probability_and_scales_the_rest(self):
        y = self.dropped(self.x)
        assert (y == 0).mean() == pytest.approx(0.3, abs=0.02)
        np.testing.assert_allclose(y[y != 0], 1 / 0.7)

    def test_the_mask_depends_on_site_step_sample_and_seed_only(self):
        y = self.dropped(self.x)
        np.testing.assert_array_equal(y, self.dropped(self.x))
        for other in (
            random.Coordinates.of(8, 3, SAMPLES),
            random.Coordinates.of(7, 4, SAMPLES),
            random.Coordinates.of(7, 3, np.array([6, 10])),
        ):
            assert not np.array_equal(y, self.dropped(self.x, other))
        assert not np.array_equal(y, self.dropped(self.x, site=2))

    def test_a_sample_draws_the_same_mask_in_any_micro_batch(self):
        alone = self.dropped(lucid.tensor(np.ones((1, 64, 64))), random.Coordinates.of(7, 3, np.array([9])))
        np.testing.assert_array_equal(self.dropped(self.x)[1], alone[0])

    def test_backward_draws_the_same_mask(self):
        check_gradients(lambda x: self.tensor_dropped(x), X)

    def tensor_dropped(self, x):
        with random.at(COORDINATES):
            return functional.dropout(x, 0.5, site=1)

    def test_outside_training_it_does_nothing(self):
        assert functional.dropout(self.x, 0.3, training=False) is self.x

    def test_calls_by_hand_follow_manual_seed(self):
        def draw():
            return functional.dropout(self.x, 0.5).numpy()

        lucid.manual_seed(3)
        first, second = draw(), draw()
        lucid.manual_seed(3)
        np.testing.assert_array_equal(first, draw())
        assert not np.array_equal(first, second)
