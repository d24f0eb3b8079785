"""Initial weights are drawn only where they are kept."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_bert import CONFIG

import lucid
from lucid import random
from lucid.models import BERTForPreTraining
from lucid.models.bert.hub import WEIGHTS_FILE
from lucid.nn import Linear


@pytest.fixture
def saved(tmp_path):
    lucid.manual_seed(8)
    BERTForPreTraining(CONFIG).save_pretrained(tmp_path)
    return tmp_path


def test_reading_a_model_draws_no_weights(saved, draws):
    lucid.manual_seed(3)
    model = BERTForPreTraining.from_pretrained(saved)
    assert not draws
    calls = random.state().calls
    for name, array in load_file(saved / WEIGHTS_FILE).items():
        np.testing.assert_array_equal(model.state_dict()[name], array)
    # What is drawn by hand later does not depend on whether they were drawn.
    lucid.manual_seed(3)
    BERTForPreTraining(CONFIG)
    assert draws
    assert random.state().calls == calls


def test_missing_heads_equal_those_of_a_new_model(saved):
    arrays = load_file(saved / WEIGHTS_FILE)
    save_file({name: array for name, array in arrays.items() if "pooler" not in name}, saved / WEIGHTS_FILE)
    lucid.manual_seed(3)
    with pytest.warns(UserWarning, match="newly initialised"):
        read = BERTForPreTraining.from_pretrained(saved).state_dict()
    lucid.manual_seed(3)
    new = BERTForPreTraining(CONFIG).state_dict()
    for name, array in read.items():
        np.testing.assert_array_equal(array, new[name] if "pooler" in name else arrays[name])


def test_another_vocabulary_keeps_a_replaced_layer(saved):
    model = BERTForPreTraining.from_pretrained(saved)
    attention = model.bert.encoder.layer[0].attention.self
    attention.query = Linear(CONFIG.hidden_size, CONFIG.hidden_size)
    attention.query.weight.data[...] = 7
    state = model.with_vocabulary(CONFIG.vocab_size - 3).state_dict()
    name = "bert.encoder.layer.0.attention.self.{}.weight"
    assert (state[name.format("query")] == 7).all()
    np.testing.assert_array_equal(state[name.format("key")], attention.key.weight.data)


def test_a_smaller_vocabulary_draws_nothing_and_a_larger_one_draws_its_new_tokens(saved, draws):
    model = BERTForPreTraining.from_pretrained(saved)
    smaller = model.with_vocabulary(CONFIG.vocab_size - 3)
    assert not draws
    words = "bert.embeddings.word_embeddings.weight"
    np.testing.assert_array_equal(smaller.state_dict()[words], model.state_dict()[words][:-3])
    larger = model.with_vocabulary(CONFIG.vocab_size + 3)
    assert draws
    assert larger.state_dict()[words][CONFIG.vocab_size :].all()


def test_new_tokens_are_the_means_of_their_pieces_and_nothing_else_changes(saved, draws):
    model = BERTForPreTraining.from_pretrained(saved)
    model.cls.predictions.bias.data[...] = np.arange(CONFIG.vocab_size)
    before = model.state_dict()
    pieces = [(7, 9, 9), [4], (119, 0)]
    after = model.with_tokens(pieces).state_dict()
    assert not draws
    for name, array in before.items():
        np.testing.assert_array_equal(after[name][: len(array)], array)
    words, bias = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"
    rows = before[words]
    means = np.stack([(rows[7] + 2 * rows[9]) / 3, rows[4], (rows[119] + rows[0]) / 2])
    np.testing.assert_allclose(after[words][CONFIG.vocab_size :], means, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(after[bias][CONFIG.vocab_size :], [25 / 3, 4, 119 / 2])
    assert {name for name, array in after.items() if array.shape != before[name].shape} == {words, bias}
    # A token without pieces is as in a new model.
    mixed = model.with_tokens([*pieces, ()]).state_dict()
    assert draws
    np.testing.assert_array_equal(mixed[words][:-1], after[words])
    assert 0 < abs(mixed[words][-1]).max() <= 2.5 * CONFIG.initializer_range
    np.testing.assert_array_equal(mixed[bias], [*after[bias], 0])
