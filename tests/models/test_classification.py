"""Classifiers against what transformers computes, kept in `tests/golden`; and what they read, write and refuse."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lucid
from lucid import random
from lucid.errors import CheckpointError
from lucid.models import BERTConfig, BERTForPreTraining, BERTForSequenceClassification, BERTForTokenClassification

GOLDEN = Path(__file__).parents[1] / "golden"
CLASSES = {"sequence": BERTForSequenceClassification, "token": BERTForTokenClassification}
INPUTS = "input_ids", "attention_mask", "token_type_ids"
# Golden values were computed in float64: what is left is the rounding of float32, relative to the largest element.
TOLERANCE = 5e-6


def folder_of(kind):
    return GOLDEN / f"bert_{kind}_labels"


@pytest.fixture(params=CLASSES)
def kind(request):
    return request.param


@pytest.fixture
def model(kind):
    return CLASSES[kind].from_pretrained(folder_of(kind)).eval()


@pytest.fixture
def golden(kind):
    return load_file(folder_of(kind) / "outputs.safetensors")


def inputs_of(golden):
    return {name: golden[name] for name in INPUTS}


def assert_close(actual, expected, what, scale=None):
    scale = np.abs(expected).max() if scale is None else scale
    assert actual.shape == expected.shape, what
    assert np.abs(actual - expected).max() <= TOLERANCE * scale, what


def test_logits_loss_and_gradients_equal_those_of_transformers(model, golden):
    assert_close(model(**inputs_of(golden)).numpy(), golden["logits"], "logits")
    loss = model.get_loss(golden["labels"], **inputs_of(golden))
    assert_close(loss.numpy(), golden["loss"], "loss")
    loss.backward()
    parameters = dict(model.named_parameters())
    assert {f"gradient.{name}" for name in parameters} == {name for name in golden if name.startswith("gradient.")}
    for name, parameter in parameters.items():
        # The gradient of a key's bias is zero: that of the query's bias is the scale of its rounding.
        scale = np.abs(golden[f"gradient.{name.replace('.key.bias', '.query.bias')}"]).max()
        assert_close(parameter.grad.numpy(), golden[f"gradient.{name}"], name, scale)


def test_predictions_are_the_most_probable_labels(model, golden):
    predicted = model.train().predict_labels(**inputs_of(golden))
    np.testing.assert_array_equal(predicted.numpy(), golden["logits"].argmax(axis=-1))


def test_what_is_saved_is_what_transformers_saves(model, kind, tmp_path):
    model.save_pretrained(tmp_path)
    config, expected = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, folder_of(kind)))
    for name in ("architectures", "model_type", "id2label", "label2id", "classifier_dropout", "hidden_size"):
        assert config[name] == expected[name], name
    assert config.get("problem_type") == {"sequence": "single_label_classification", "token": None}[kind]
    arrays, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, folder_of(kind)))
    assert arrays.keys() == theirs.keys()
    again = CLASSES[kind].from_pretrained(tmp_path)
    assert (again.labels, again.classifier_dropout) == (("neither", "one", "other"), 0.3)
    for name, array in again.state_dict().items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_any_bert_gets_a_new_head_for_given_labels(kind):
    for folder in (GOLDEN / "bert_gelu", folder_of("sequence")):
        lucid.manual_seed(1)
        first = CLASSES[kind].from_pretrained(folder, ["a", "b"]).state_dict()
        lucid.manual_seed(2)
        second = CLASSES[kind].from_pretrained(folder, ["a", "b"]).state_dict()
        stored = load_file(folder / "model.safetensors")
        assert first["classifier.weight"].shape == (2, 32)
        assert not np.array_equal(first["classifier.weight"], second["classifier.weight"])
        for name, array in first.items():
            if name.startswith("bert."):
                np.testing.assert_array_equal(array, stored[name], err_msg=name)


def test_a_pooler_that_is_missing_is_drawn_with_a_warning():
    with pytest.warns(UserWarning, match="has no pooler: newly initialised"):
        model = BERTForSequenceClassification.from_pretrained(folder_of("token"), ["a", "b"])
    assert model.state_dict()["bert.pooler.dense.weight"].any()


def test_a_model_for_another_task_reads_the_encoder_and_leaves_the_classifier_out():
    with pytest.warns(UserWarning, match=r"also holds classifier\.bias, classifier\.weight: left out"):
        BERTForPreTraining.from_pretrained(folder_of("sequence"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, "has no classifier for its 2 labels"),
        ({"id2label": {"0": "a", "2": "b", "3": "c"}}, "id2label does not number the labels from 0 up"),
        ({"id2label": {"0": "a", "1": "a", "2": "c"}}, "id2label takes names, each once"),
        ({"id2label": ["a", "b", "c"]}, "id2label does not number"),
        ({"problem_type": "regression"}, "problem_type is 'regression'; only 'single_label_classification'"),
        ({"classifier_dropout": "much"}, "classifier_dropout is 'much'; it takes a number from 0"),
        ({"classifier_dropout": 1}, "classifier_dropout is 1; it takes a number from 0"),
    ],
)
def test_a_folder_that_is_no_classifier_is_refused_in_a_sentence(change, message, tmp_path):
    shutil.copy(folder_of("sequence") / "model.safetensors", tmp_path)
    config = json.loads((folder_of("sequence") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        BERTForSequenceClassification.from_pretrained(tmp_path)


def test_a_model_of_another_task_is_no_classifier():
    with pytest.raises(CheckpointError, match="no classifier for its 2 labels: it is no BertForTokenClassification"):
        BERTForTokenClassification.from_pretrained(GOLDEN / "bert_gelu")


def test_the_names_of_transformers_stand_for_labels_without_names(tmp_path):
    arrays = load_file(folder_of("sequence") / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        arrays[name] = arrays[name][:2]
    save_file(arrays, tmp_path / "model.safetensors")
    config = json.loads((folder_of("sequence") / "config.json").read_text())
    config.pop("id2label")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert BERTForSequenceClassification.from_pretrained(tmp_path).labels == ("LABEL_0", "LABEL_1")


def test_wrong_labels_are_refused(kind, model, golden):
    inputs = inputs_of(golden)
    with pytest.raises(ValueError, match="labels has the value 3; it takes 0 to 2, or -100"):
        model.get_loss(np.full_like(golden["labels"], 3), **inputs)
    with pytest.raises(ValueError, match="labels has shape"):
        model.get_loss(golden["labels"][:2], **inputs)
    with pytest.raises(ValueError, match="each once"):
        CLASSES[kind](BERTConfig(), ["a", "a"])


def test_dropout_before_the_head_depends_on_the_sample_not_on_the_batch(kind):
    config = BERTConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    lucid.manual_seed(1)
    model, ids = CLASSES[kind](config, ["a", "b"], classifier_dropout=0.5), np.arange(5, 35).reshape(5, 6)

    def scores(samples):
        with random.at(random.Coordinates.of(7, 3, np.array(samples))):
            return model(ids[samples]).numpy()

    whole = scores([0, 1, 2, 3, 4])
    np.testing.assert_allclose(scores([1, 4]), whole[[1, 4]], atol=1e-6)
    assert not np.allclose(whole, model.eval()(ids).numpy(), atol=1e-4)
