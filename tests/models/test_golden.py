"""The model against what transformers computes, kept in `tests/golden`: no torch is needed here."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lucid
from lucid.errors import CheckpointError
from lucid.models import BERTForPreTraining

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [
    ("gelu", "padded"),
    ("gelu", "explicit_positions"),
    ("gelu", "embeddings_as_inputs"),
    ("gelu_new", "padded"),
    ("relu", "padded"),
]
ARGUMENTS = "input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds"
# The golden values were computed in float64: what is left is the rounding of our float32 (1.3e-6 was seen), or, for a
# model in float64, that of the float32 they are stored in.
TOLERANCE = {np.dtype(np.float32): 5e-6, np.dtype(np.float64): 1e-7}


@pytest.fixture(params=CASES, ids="-".join)
def golden(request):
    """A model, the arguments of its forward, its labels, and all that transformers made of them."""
    hidden_act, case = request.param
    folder = GOLDEN / f"bert_{hidden_act}"
    arrays = load_file(folder / f"{case}.safetensors")
    arguments = {name: arrays[name] for name in ARGUMENTS if name in arrays}
    labels = {name: arrays[name] for name in ("mlm_labels", "nsp_labels")}
    return BERTForPreTraining.from_pretrained(folder).eval(), arguments, labels, arrays


def assert_close(actual, expected, what, scale=None):
    """Every element is right to the tolerance of its dtype, relative to the largest of the array (or to `scale`)."""
    assert actual.shape == expected.shape, what
    scale = np.abs(expected).max() if scale is None else scale
    error = np.abs(actual.astype(np.float64) - expected).max() / scale
    assert error <= TOLERANCE[actual.dtype], f"{what}: {error:.1e} of its largest element"


def test_logits_equal_those_of_transformers(golden):
    model, arguments, _, expected = golden
    prediction_scores, seq_relationship_scores = model(**arguments)
    assert_close(prediction_scores.numpy(), expected["prediction_scores"], "prediction_scores")
    assert_close(seq_relationship_scores.numpy(), expected["seq_relationship_scores"], "seq_relationship_scores")


def test_losses_equal_those_of_transformers(golden):
    model, arguments, labels, expected = golden
    mlm_loss = model.get_mlm_loss(labels["mlm_labels"], **arguments)
    nsp_loss = model.get_nsp_loss(labels["nsp_labels"], **arguments)
    loss = model.get_loss(**labels, **arguments)
    assert_close(mlm_loss.numpy(), expected["mlm_loss"], "mlm_loss")
    assert_close(nsp_loss.numpy(), expected["nsp_loss"], "nsp_loss")
    assert_close(loss.numpy(), expected["loss"], "loss")


def test_gradients_of_all_parameters_equal_those_of_transformers(golden):
    model, arguments, labels, expected = golden
    model.get_loss(**labels, **arguments).backward()
    assert_gradients_are_golden(model, expected)


def test_in_float64_the_model_agrees_with_transformers_to_the_last_stored_digit(golden):
    model, arguments, labels, expected = golden
    model.to(np.float64)
    if "inputs_embeds" in arguments:
        arguments["inputs_embeds"] = arguments["inputs_embeds"].astype(np.float64)
    prediction_scores, _ = model(**arguments)
    assert prediction_scores.dtype == np.float64
    assert_close(prediction_scores.numpy(), expected["prediction_scores"], "prediction_scores")
    model.get_loss(**labels, **arguments).backward()
    assert_gradients_are_golden(model, expected)


def assert_gradients_are_golden(model, expected):
    for name, parameter in model.named_parameters():
        gradient = expected[f"gradient.{name}"]
        # A key's bias shifts all scores of a query equally, which softmax cancels: the gradient is zero. The gradient
        # of the query's bias is the scale of its rounding.
        query_bias = name.replace(".key.bias", ".query.bias")
        assert_close(parameter.grad.numpy(), gradient, name, scale=np.abs(expected[f"gradient.{query_bias}"]).max())


def test_gradient_reaches_the_embeddings_given_as_inputs():
    folder = GOLDEN / "bert_gelu"
    expected = load_file(folder / "embeddings_as_inputs.safetensors")
    model = BERTForPreTraining.from_pretrained(folder).eval()
    inputs_embeds = lucid.tensor(expected["inputs_embeds"], requires_grad=True)
    model.get_loss(
        mlm_labels=expected["mlm_labels"],
        nsp_labels=expected["nsp_labels"],
        attention_mask=expected["attention_mask"],
        token_type_ids=expected["token_type_ids"],
        inputs_embeds=inputs_embeds,
    ).backward()
    assert_close(inputs_embeds.grad.numpy(), expected["gradient.inputs_embeds"], "inputs_embeds")


def test_loss_from_the_full_logits_has_the_gradients_of_the_fused_loss():
    # get_loss runs the MLM head on the masked positions only: the scores of all positions give the same gradients.
    folder = GOLDEN / "bert_gelu"
    expected = load_file(folder / "padded.safetensors")
    model = BERTForPreTraining.from_pretrained(folder).eval()
    arguments = {name: expected[name] for name in ARGUMENTS if name in expected}
    prediction_scores, seq_relationship_scores = model(**arguments)
    rows = prediction_scores.reshape(-1, prediction_scores.shape[-1])
    mlm_loss = lucid.nn.functional.cross_entropy(rows, expected["mlm_labels"].reshape(-1), ignore_index=-100)
    nsp_loss = lucid.nn.functional.cross_entropy(seq_relationship_scores, expected["nsp_labels"])
    (mlm_loss + nsp_loss).backward()
    assert_gradients_are_golden(model, expected)


def test_two_backward_passes_add_their_gradients(golden):
    model, arguments, labels, expected = golden
    for _ in range(2):
        model.get_loss(**labels, **arguments).backward()
    assert_gradients_are_golden(model, {name: 2 * array for name, array in expected.items()})


def test_parameters_have_the_names_and_shapes_of_transformers(golden):
    model, _, _, expected = golden
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    prefix = "gradient."
    assert shapes == {
        name.removeprefix(prefix): array.shape
        for name, array in expected.items()
        if name.startswith(prefix) and name != "gradient.inputs_embeds"
    }


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "relu"])
def test_saved_model_comes_back_bit_for_bit(hidden_act, tmp_path):
    model = BERTForPreTraining.from_pretrained(GOLDEN / f"bert_{hidden_act}")
    model.save_pretrained(tmp_path / "saved")
    again = BERTForPreTraining.from_pretrained(tmp_path / "saved")
    assert again.config == model.config
    assert_same_parameters(again, model)


def assert_same_parameters(actual, expected):
    actual, expected = dict(actual.named_parameters()), dict(expected.named_parameters())
    assert actual.keys() == expected.keys()
    for name, parameter in expected.items():
        np.testing.assert_array_equal(actual[name].numpy(), parameter.numpy(), err_msg=name)


def test_saved_files_have_the_content_of_those_of_transformers(tmp_path):
    original = GOLDEN / "bert_gelu_new"
    BERTForPreTraining.from_pretrained(original).save_pretrained(tmp_path)
    config, expected_config = read_json(tmp_path / "config.json"), read_json(original / "config.json")
    for key in ("architectures", "model_type", "hidden_act", "vocab_size", "hidden_size", "layer_norm_eps"):
        assert config[key] == expected_config[key]
    arrays, expected_arrays = load_file(tmp_path / "model.safetensors"), load_file(original / "model.safetensors")
    assert arrays.keys() == expected_arrays.keys()
    for name, array in expected_arrays.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def read_json(path):
    return json.loads(path.read_text())


def with_gamma_and_beta(arrays):
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in arrays.items()
    }
    assert renamed.keys() != arrays.keys()
    return renamed


def with_position_ids(arrays):
    return arrays | {"bert.embeddings.position_ids": np.arange(48, dtype=np.int64)[None]}


def with_tied_entries(arrays):
    assert "cls.predictions.decoder.weight" not in arrays
    return arrays | {
        "cls.predictions.decoder.weight": arrays["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": arrays["cls.predictions.bias"],
    }


def with_the_decoder_for_the_bias(arrays):
    arrays = dict(arrays)
    arrays["cls.predictions.decoder.bias"] = arrays.pop("cls.predictions.bias")
    return arrays


@pytest.mark.parametrize(
    "rewrite", [with_gamma_and_beta, with_position_ids, with_tied_entries, with_the_decoder_for_the_bias]
)
def test_other_forms_of_a_checkpoint_are_read(rewrite, tmp_path):
    original = GOLDEN / "bert_gelu"
    write_checkpoint(tmp_path, rewrite(load_file(original / "model.safetensors")))
    assert_same_parameters(BERTForPreTraining.from_pretrained(tmp_path), BERTForPreTraining.from_pretrained(original))


def write_checkpoint(folder, arrays):
    (folder / "config.json").write_text((GOLDEN / "bert_gelu" / "config.json").read_text())
    save_file(arrays, folder / "model.safetensors")


def without_a_weight(arrays, missing):
    return {name: array for name, array in arrays.items() if name != missing}


def with_a_weight_of_another_shape(arrays, name):
    return arrays | {name: np.zeros((32, 31), np.float32)}


def with_an_unknown_weight(arrays, name):
    return arrays | {name: np.zeros((32, 32), np.float32)}


def with_an_untied_decoder(arrays, name):
    return arrays | {name: arrays["bert.embeddings.word_embeddings.weight"] + 1}


@pytest.mark.parametrize(
    ("rewrite", "name"),
    [
        (without_a_weight, "bert.encoder.layer.1.attention.self.key.weight"),
        (with_a_weight_of_another_shape, "bert.encoder.layer.1.attention.self.key.weight"),
        (with_an_unknown_weight, "bert.encoder.layer.1.attention.self.key.lora"),
        (with_an_untied_decoder, "cls.predictions.decoder.weight"),
    ],
)
def test_the_error_for_an_unfit_checkpoint_names_the_parameter(rewrite, name, tmp_path):
    write_checkpoint(tmp_path, rewrite(load_file(GOLDEN / "bert_gelu" / "model.safetensors"), name))
    with pytest.raises(CheckpointError, match=re.escape(name)):
        BERTForPreTraining.from_pretrained(tmp_path)


def test_missing_heads_are_made_anew_with_a_warning_that_names_them(tmp_path):
    arrays = load_file(GOLDEN / "bert_gelu" / "model.safetensors")
    write_checkpoint(tmp_path, {name: array for name, array in arrays.items() if not name.startswith("cls.seq")})
    with pytest.warns(UserWarning, match="has no NSP head: newly initialised"):
        model = BERTForPreTraining.from_pretrained(tmp_path)
    state = model.state_dict()
    np.testing.assert_array_equal(state["bert.pooler.dense.weight"], arrays["bert.pooler.dense.weight"])
    assert state["cls.seq_relationship.weight"].any()


def test_the_error_for_a_folder_without_a_model_names_it(tmp_path):
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        BERTForPreTraining.from_pretrained(tmp_path)


def test_the_error_for_a_damaged_file_names_it(tmp_path):
    write_checkpoint(tmp_path, load_file(GOLDEN / "bert_gelu" / "model.safetensors"))
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        BERTForPreTraining.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "setting",
    [
        {"model_type": "roberta"},
        {"model_type": "distilbert"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"add_cross_attention": True},
    ],
)
def test_the_error_for_a_model_that_is_no_plain_bert_names_the_setting(setting, tmp_path):
    write_checkpoint(tmp_path, load_file(GOLDEN / "bert_gelu" / "model.safetensors"))
    config = read_json(tmp_path / "config.json") | setting
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="|".join(setting)):
        BERTForPreTraining.from_pretrained(tmp_path)
