"""Flat buffers pad the vocabulary with rows of zeros, which make products fast and change no result."""

import numpy as np
import pytest
from tiny_bert import CONFIG, V

import lucid
from lucid.models import BERTForPreTraining
from lucid.nn import flatten
from lucid.optim import LAMB, AdamW, OneProcess, global_norm

TABLE, BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"


@pytest.fixture
def twin():
    """The same model, in no flat buffers."""
    lucid.manual_seed(0)
    return BERTForPreTraining(CONFIG).eval()


def padding(flat, buffer):
    """What lies behind the vocabulary's rows in a buffer."""
    views = zip(flat.segments, flat.padded_views(buffer), strict=True)
    return {part.name: view[part.shape[0] :] for part, view in views if view.shape != part.shape}


def test_only_the_table_and_the_bias_are_padded_to_a_multiple_of_64_rows(model):
    flat = flatten(model, bfloat16_copy=True)
    assert {name: rows.shape for name, rows in padding(flat, flat.values).items()} == {
        TABLE: (128 - V, CONFIG.hidden_size),
        BIAS: (128 - V,),
    }
    for name, parameter in model.named_parameters():
        rows = {TABLE: 128, BIAS: 128}.get(name, len(parameter))
        assert parameter.padded.shape == (rows, *parameter.shape[1:])
        np.testing.assert_array_equal(parameter.padded.data[: len(parameter)], parameter.data)
        np.testing.assert_array_equal(parameter.padded.compute_copy[: len(parameter)], parameter.compute_copy)
        assert not parameter.padded.data[len(parameter) :].any()


def test_without_flat_buffers_nothing_is_padded(model):
    assert all(parameter.padded is parameter for parameter in model.parameters())


def test_padding_does_not_change_losses_gradients_and_accuracies(model, twin, arrays):
    flat = flatten(model)
    flat.gradients[:] = np.nan
    losses = []
    for each in (model, twin):
        # So low are all scores that those of the padding would be the greatest, and most of the sum.
        each.cls.predictions.bias.data[...] = np.linspace(-9, -8, V)
        losses.append(each.get_loss(**arrays))
        losses[-1].backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    expected = dict(twin.named_parameters())
    for name, gradient in flat.views(flat.gradients).items():
        np.testing.assert_allclose(gradient, expected[name].grad.numpy(), rtol=1e-4, atol=1e-6)
    assert not any(rows.any() for rows in padding(flat, flat.gradients).values())
    for each in ("get_accuracy", "get_mlm_accuracy"):
        given = {key: value for key, value in arrays.items() if key != "nsp_labels" or each == "get_accuracy"}
        np.testing.assert_array_equal(getattr(model, each)(**given), getattr(twin, each)(**given))


def test_scores_predictions_and_states_have_no_padding(model, twin, arrays):
    flatten(model)
    inputs = {name: arrays[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    scores, _ = model(**inputs)
    assert scores.shape == (*arrays["input_ids"].shape, V)
    np.testing.assert_allclose(scores.numpy(), twin(**inputs)[0].numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.predict_mlm_token_ids(**inputs), scores.numpy().argmax(axis=-1))
    state, expected = model.state_dict(), twin.state_dict()
    assert {name: array.shape for name, array in state.items()} == {n: array.shape for n, array in expected.items()}
    twin.load_state_dict(state)


@pytest.mark.parametrize("optimizer", [AdamW, LAMB])
def test_steps_leave_zeros_in_values_and_moments(model, arrays, optimizer):
    flat = flatten(model)
    updates = optimizer(OneProcess(flat), weight_decay=0.1)
    for _ in range(3):
        flat.zero_grad()
        model.get_loss(**arrays).backward()
        own = sum(np.square(view.astype(np.float64)).sum() for view in flat.views(flat.gradients).values())
        assert global_norm(updates.partition).item() == pytest.approx(np.sqrt(own), rel=1e-6)
        updates.step(0.1)
    for buffer in (flat.values, updates.first_moments, updates.second_moments):
        assert not any(rows.any() for rows in padding(flat, buffer).values())


def test_a_gradient_from_look_ups_alone_clears_the_padding(model, arrays):
    flat = flatten(model)
    flat.gradients[:] = np.nan
    model.get_nsp_loss(arrays["nsp_labels"], arrays["input_ids"]).backward()
    flat.zero_unset_gradients()
    for rows in padding(flat, flat.gradients).values():
        np.testing.assert_array_equal(rows, np.zeros(rows.shape))


def test_gradients_of_several_backward_passes_add_up(model, arrays):
    flat = flatten(model)
    model.get_loss(**arrays).backward()
    once = {name: view.copy() for name, view in flat.views(flat.gradients).items()}
    model.get_loss(**arrays).backward()
    for name, view in flat.views(flat.gradients).items():
        np.testing.assert_allclose(view, 2 * once[name], rtol=1e-5, atol=1e-7)
