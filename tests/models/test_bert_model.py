"""BERT without heads: the same encoder as in the model for pretraining, from tokens to hidden states."""

import warnings

import numpy as np
import pytest
from tiny_bert import CONFIG, B, T

import lucid
from lucid import models
from lucid.models.bert import hub


def inputs_of(arrays):
    return {name: arrays[name] for name in ("input_ids", "attention_mask", "token_type_ids")}


def test_it_returns_hidden_states_of_all_slots_and_the_pooled_first_one(model, arrays):
    hidden, pooled = model.bert(**inputs_of(arrays))
    assert (hidden.shape, pooled.shape) == ((B, T, CONFIG.hidden_size), (B, CONFIG.hidden_size))
    scores, pair_scores = model(**inputs_of(arrays))
    rows = hidden.reshape(-1, CONFIG.hidden_size)
    np.testing.assert_array_equal(model.cls.predictions(rows).numpy(), scores.reshape(B * T, -1).numpy())
    np.testing.assert_array_equal(model.cls.seq_relationship(pooled).numpy(), pair_scores.numpy())


def test_it_takes_positions_and_embeddings_as_the_whole_model_does(model, arrays):
    table = model.bert.embeddings.word_embeddings.weight.numpy()
    ids, positions = arrays["input_ids"], np.arange(T)[::-1].copy()
    expected, _ = model.bert(ids, position_ids=positions)
    got, _ = model.bert(inputs_embeds=table[ids], position_ids=positions)
    np.testing.assert_allclose(got.numpy(), expected.numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="input_ids has the value 120; it takes 0 to 119"):
        model.bert([[1, 120]])


def test_gradients_reach_all_its_parameters(model, arrays):
    hidden, pooled = model.bert(**inputs_of(arrays))
    (hidden.sum() + (pooled * pooled).sum()).backward()
    assert all(parameter.has_gradient for parameter in model.bert.parameters())


def test_it_is_read_from_the_folder_of_a_whole_model_and_read_again(model, arrays, tmp_path):
    model.save_pretrained(tmp_path / "whole")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = models.BERTModel.from_pretrained(tmp_path / "whole").eval()
        read.save_pretrained(tmp_path / "encoder")
        again = models.BERTModel.from_pretrained(tmp_path / "encoder").eval()
    for each in (read, again):
        for one, other in zip(each(**inputs_of(arrays)), model.bert(**inputs_of(arrays)), strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())
    with pytest.warns(UserWarning, match="has no MLM head and NSP head: newly initialised"):
        models.BERTForPreTraining.from_pretrained(tmp_path / "encoder")


def test_a_missing_pooler_is_drawn_as_in_the_whole_model_and_said(model, tmp_path):
    absent = ("bert.pooler.", "cls.seq_relationship.")
    state = {name: array for name, array in model.state_dict().items() if not name.startswith(absent)}
    hub.write(tmp_path, CONFIG, state)
    poolers = []
    for kind in (models.BERTModel, models.BERTForPreTraining):
        lucid.manual_seed(5)
        with pytest.warns(UserWarning, match=r"has no pooler( and NSP head)?: newly initialised"):
            read = kind.from_pretrained(tmp_path)
        poolers.append(getattr(read, "bert", read).pooler.dense.weight.numpy())
    assert poolers[0].any()
    np.testing.assert_array_equal(*poolers)


def test_parameters_are_counted_once(model):
    assert model.num_parameters() == sum(array.size for array in model.state_dict().values())
    assert model.bert.num_parameters() < model.num_parameters()
    assert model.cls.predictions.decoder.num_parameters() == (CONFIG.hidden_size + 1) * CONFIG.vocab_size
