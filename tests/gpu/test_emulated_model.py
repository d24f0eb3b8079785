"""A BERT that learns on a GPU: the CUDA kernels take all arguments that its operations pass."""

import ml_dtypes
import numpy as np
import pytest
from tiny_bert import CONFIG, IGNORED, B, T, V

import lucid
from lucid import backend, nn, random
from lucid.models import BERTForPreTraining
from lucid.nn.parameters import flatten
from lucid.optim import LAMB, AdamW, OneProcess, global_norm


def train(optimizer_class, batch, dtype, device):
    """Take two steps with dropout. Return the losses, the gradients' norms and the weights."""
    lucid.manual_seed(0)
    model, found = BERTForPreTraining(CONFIG).to(dtype).to(device), []
    batch = {name: backend.to_device(array, device) for name, array in batch.items()}
    flat = flatten(model)
    optimizer = optimizer_class(OneProcess(flat))
    for step in range(2):
        flat.zero_grad()
        counters = random.Coordinates.of(3, step, np.arange(B)).counters
        with random.at(random.Coordinates(3, backend.to_device(counters, device))):
            loss = model.get_loss(**batch, reduction="sum")
        loss.backward()
        found += [loss.item(), float(global_norm(optimizer.partition))]
        optimizer.step(1e-3)
    return np.array(found), np.concatenate([parameter.numpy().reshape(-1) for parameter in flat.parameters])


def test_joined_parameters_are_one_array_in_every_buffer(machine):
    model = BERTForPreTraining(CONFIG).to(machine.device)
    flat = flatten(model, bfloat16_copy=True)
    attention = "bert.encoder.layer.0.attention.self"
    for buffer in (flat.values, flat.gradients, flat.bfloat16_copy):
        views = flat.views(buffer)
        for kind in ("weight", "bias"):
            parts = [views[f"{attention}.{name}.{kind}"] for name in ("query", "key", "value")]
            whole = backend.as_one(parts)
            np.testing.assert_array_equal(machine.get(whole), np.concatenate(list(map(machine.get, parts))))
            whole += 1
            np.testing.assert_array_equal(machine.get(whole), np.concatenate(list(map(machine.get, parts))))
    assert backend.as_one([machine.put(np.ones(4)), machine.put(np.ones(4))]) is None


def test_a_model_gets_another_vocabulary_where_it_is(machine):
    model, pieces = BERTForPreTraining(CONFIG), [(1, 2), (3,), ()]
    for change in (lambda model: model.with_vocabulary(V - 3), lambda model: model.with_tokens(pieces)):
        lucid.manual_seed(1)
        expected = change(model.to("cpu")).state_dict()
        lucid.manual_seed(1)
        changed = change(model.to(machine.device))
        assert changed.device == model.device
        for name, array in changed.state_dict().items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-6)


def test_a_transposed_matrix_gets_its_gradient(machine):
    x, weight = np.eye(3, 4, dtype=np.float32), np.arange(8, dtype=np.float32).reshape(4, 2)
    matrix = lucid.tensor(machine.put(weight), requires_grad=True)
    product = nn.functional.linear(lucid.tensor(machine.put(x)), matrix.transpose(0, 1))
    product.backward(machine.put(np.ones((3, 2), np.float32)))
    np.testing.assert_array_equal(product.numpy(), weight[:3])
    np.testing.assert_array_equal(matrix.grad.numpy(), x.T @ np.ones((3, 2)))


def test_a_product_adds_the_rounded_bias_and_other_operations_the_exact_one(machine):
    layer, exact = nn.Linear(4, 3).to(machine.device), np.float32([1 + 2**-12, 0, -1])
    layer.bias.data[...] = machine.put(exact)
    flatten(layer, bfloat16_copy=True)
    zeros = machine.put(np.zeros((2, 4), ml_dtypes.bfloat16))
    np.testing.assert_array_equal(layer(lucid.tensor(zeros)).numpy().astype(np.float32), [[1, 0, -1]] * 2)
    zeros = machine.put(np.zeros((2, 3), np.float32))
    activated = nn.functional.activation(lucid.tensor(zeros), "relu", layer.bias)
    np.testing.assert_array_equal(activated.numpy(), [np.maximum(exact, 0)] * 2)


@pytest.mark.parametrize("optimizer_class", [AdamW, LAMB])
def test_losses_norms_and_weights_equal_those_of_the_reference(machine, optimizer_class):
    generator = np.random.default_rng(1)
    ids = generator.integers(1, V, (B, T))
    batch = {
        "input_ids": ids,
        "attention_mask": np.arange(T) < np.array([[T], [5], [1], [9]]),
        "token_type_ids": generator.integers(0, 2, (B, T)),
        "mlm_labels": np.where(generator.random((B, T)) < 0.3, ids, IGNORED),
        "nsp_labels": generator.integers(0, 2, B),
    }
    expected, expected_weights = train(optimizer_class, batch, np.float64, "cpu")
    got, weights = train(optimizer_class, batch, np.float32, machine.device)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    # If a gradient consists of rounding errors, like that of the keys' biases, Adam turns them into whole steps.
    assert np.median(np.abs(weights - expected_weights)) < 1e-6
