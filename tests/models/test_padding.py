"""Losses are computed on token rows without padding, and equal those of the whole padded grid."""

import numpy as np
import pytest
from tiny_bert import CONFIG, IGNORED, B, T, V

import lucid
from lucid import random
from lucid.kernels.sequences import Sequences
from lucid.models import BERTForPreTraining
from lucid.models.bert.arguments import Grid

COORDINATES = random.Coordinates.of(seed=3, step=7, samples=np.array([6, 1, 8, 0]))


def masks():
    """Attention masks [B, T] by name."""
    generator = np.random.default_rng(0)
    slots = np.arange(T)
    yield "right padding", slots < np.array([[T], [5], [1], [9]])
    yield "left padding", slots >= np.array([[0], [7], [T - 1], [3]])
    yield "holes", generator.random((B, T)) < 0.5
    yield "a row of padding alone", slots < np.array([[4], [0], [T], [0]])
    yield "nothing but padding", slots < np.zeros((B, 1))
    yield "no padding", slots < np.full((B, 1), T)
    yield "one token each", slots < np.ones((B, 1))


@pytest.fixture(params=list(masks()), ids=lambda named: named[0])
def batch(request):
    """A batch that is padded somehow, with labels on tokens and on padding."""
    generator, (_, mask) = np.random.default_rng(1), request.param
    ids = generator.integers(1, V, (B, T))
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": generator.integers(0, 2, (B, T)),
        "mlm_labels": np.where(generator.random((B, T)) < np.where(mask, 0.4, 0.1), ids, IGNORED),
        "nsp_labels": generator.integers(0, 2, B),
    }


def loss_and_gradients(dtype, batch, **others):
    """Return the loss of a model in training, with dropout, and all its gradients, by name."""
    lucid.manual_seed(0)
    model = BERTForPreTraining(CONFIG).to(dtype)
    with random.at(COORDINATES):
        loss = model.get_loss(**batch, **others, reduction="sum")
    loss.backward()
    return {"loss": loss.numpy()} | {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


@pytest.fixture
def on_all_slots(monkeypatch):
    """A function that returns what a function returns when nothing is left out."""

    def call(function, *arguments, **others):
        with monkeypatch.context() as patch:
            patch.setattr(Grid, "without_padding", lambda grid, _=None: grid.all_slots())
            return function(*arguments, **others)

    return call


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_losses_and_gradients_equal_those_of_all_slots(dtype, tolerance, batch, on_all_slots):
    expected = on_all_slots(loss_and_gradients, dtype, batch)
    for name, value in loss_and_gradients(dtype, batch).items():
        # Some gradients, as of the bias of the two classes, are small differences of larger numbers.
        scale = max(0.1, np.abs(expected[name]).max())
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=tolerance * scale, err_msg=name)


def test_input_embeddings_and_positions_lose_their_padding_too(batch, on_all_slots):
    generator = np.random.default_rng(2)
    del batch["input_ids"]
    others = {"position_ids": generator.integers(0, T, (B, T))}
    gradients = []

    def run():
        embeds = lucid.tensor(generator.standard_normal((B, T, CONFIG.hidden_size)), requires_grad=True)
        loss = loss_and_gradients(np.float64, batch, inputs_embeds=embeds, **others)["loss"]
        gradients.append(embeds.grad.numpy())
        return loss

    state = generator.bit_generator.state
    expected = on_all_slots(run)
    generator.bit_generator.state = state
    np.testing.assert_allclose(run(), expected, rtol=1e-12)
    np.testing.assert_allclose(*gradients, rtol=0, atol=1e-12)


def test_single_losses_and_predictions_equal_those_of_all_slots(batch, on_all_slots):
    lucid.manual_seed(0)
    model = BERTForPreTraining(CONFIG).to(np.float64).eval()
    mlm_labels, nsp_labels = batch.pop("mlm_labels"), batch.pop("nsp_labels")
    for method, labels in ((model.get_mlm_loss, (mlm_labels,)), (model.get_nsp_loss, (nsp_labels,))):
        np.testing.assert_allclose(
            method(*labels, **batch).item(), on_all_slots(method, *labels, **batch).item(), rtol=1e-12
        )
    np.testing.assert_array_equal(model.predict_nsp_labels(**batch).numpy(), model(**batch)[1].numpy().argmax(axis=1))


def test_token_rows_are_the_slots_up_to_the_last_that_counts():
    mask = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
    labelled = np.zeros((4, 4), bool)
    labelled[3, 1] = True
    sequences = Sequences.unpadded(mask, mask, labelled)
    assert sequences.bounds == (0, 2, 5, 9, 11)
    assert sequences.slots.tolist() == [0, 1, 4, 5, 6, 8, 9, 10, 11, 12, 13]
    assert sequences.mask.tolist() == [True, True, True, False, True, *[False] * 4, True, False]
    right_padded = np.arange(4) < np.array([[2], [4], [1], [3]])
    assert Sequences.unpadded(right_padded, right_padded).mask is None


def test_the_content_of_a_padded_slot_is_not_read():
    batch = {"input_ids": np.ones((2, T), int), "attention_mask": np.arange(T) < np.array([[T], [4]])}
    labels = np.where(np.arange(T) == 2, np.ones((2, T), int), IGNORED), np.array([0, 1])
    lucid.manual_seed(0)
    model = BERTForPreTraining(CONFIG).eval()
    model.bert.embeddings.word_embeddings.weight.data[V - 1] = np.nan
    batch["input_ids"][1, 4:] = V - 1
    assert np.isfinite(model.get_nsp_loss(labels[1], **batch).item())
