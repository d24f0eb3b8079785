"""The arguments of the model: signatures, configurations, and errors that name the argument."""

import inspect
import re
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from tiny_bert import CONFIG, IGNORED, B, T, V

import lucid
from lucid import models

# --- signatures

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
COUNTED = {"ignore_index": -100}
REDUCED = {"reduction": "mean"}
WEIGHTED = {"mlm_weight": 1.0, "nsp_weight": 1.0}
# Each method's labels, and its options with their defaults; all take the inputs of forward.
METHODS = {
    "get_mlm_loss": (["mlm_labels"], COUNTED | REDUCED),
    "get_nsp_loss": (["nsp_labels"], REDUCED),
    "get_loss": (["mlm_labels", "nsp_labels"], WEIGHTED | COUNTED | REDUCED),
    "predict_mlm_token_ids": ([], {}),
    "predict_nsp_labels": ([], {}),
    "get_mlm_accuracy": (["mlm_labels"], COUNTED),
    "get_nsp_accuracy": (["nsp_labels"], {}),
    "get_accuracy": (["mlm_labels", "nsp_labels"], WEIGHTED | COUNTED),
}


def defaults_of(method):
    parameters = inspect.signature(getattr(models.BERTForPreTraining, method)).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


def test_forward_has_the_documented_signature():
    assert list(defaults_of("forward").items()) == [(name, None) for name in INPUTS]


def test_masking_has_the_documented_signature():
    assert list(defaults_of("create_masked_lm_inputs").items()) == [
        ("input_ids", inspect.Parameter.empty),
        ("attention_mask", None),
        ("special_tokens_mask", None),
        ("mask_token_id", 103),
        ("mlm_probability", 0.15),
        ("mask_replace_prob", 0.8),
        ("random_replace_prob", 0.1),
        ("ignore_index", -100),
    ]


@pytest.mark.parametrize("method", METHODS)
def test_method_has_the_documented_arguments_and_defaults(method):
    labels, options = METHODS[method]
    defaults = defaults_of(method)
    assert list(defaults)[: len(labels) + 1] == [*labels, "input_ids"]
    assert defaults["input_ids"] is None
    assert {name: defaults[name] for name in options} == options
    signature = inspect.signature(getattr(models.BERTForPreTraining, method))
    signature.bind(None, **dict.fromkeys([*labels, *INPUTS, *options]))


@pytest.mark.parametrize("method", METHODS)
def test_method_refuses_an_argument_it_does_not_know(model, arrays, method):
    labels = {name: arrays[name] for name in METHODS[method][0]}
    with pytest.raises(TypeError, match="head_mask"):
        getattr(model, method)(**labels, input_ids=arrays["input_ids"], head_mask=None)


def test_the_constructor_takes_a_config():
    assert list(inspect.signature(models.BERTForPreTraining).parameters) == ["config"]


# --- configurations


def test_the_default_config_is_that_of_bert_base():
    assert models.BERTConfig() == models.BERTConfig(
        vocab_size=30522,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        hidden_act="gelu",
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        max_position_embeddings=512,
        type_vocab_size=2,
        initializer_range=0.02,
        layer_norm_eps=1e-12,
        pad_token_id=0,
    )


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        CONFIG.hidden_size = 64


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"hidden_size": 30}, "hidden_size.*num_attention_heads"),
        ({"hidden_act": "swish"}, "hidden_act.*swish"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob"),
    ],
)
def test_the_error_for_an_impossible_config_names_the_field(changes, key):
    with pytest.raises((ValueError, lucid.errors.ConfigError), match=key):
        replace(CONFIG, **changes)


def count(model):
    return sum(parameter.size for parameter in model.parameters())


def test_base_has_the_promised_number_of_parameters():
    assert count(models.bert_for_pre_training_base()) == 110_106_428


def test_large_has_the_promised_number_of_parameters():
    # All layers have one size, so two small models give the size of the large one without its 1.3 GB.
    large = models.BERTConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    one, two = (count(models.BERTForPreTraining(replace(large, num_hidden_layers=layers))) for layers in (1, 2))
    assert one + 23 * (two - one) == 336_226_108


def test_a_fresh_model_has_the_initial_weights_of_bert(model):
    for name, array in model.state_dict().items():
        if name.endswith("LayerNorm.weight"):
            assert (array == 1).all(), name
        elif name.endswith("bias"):
            assert (array == 0).all(), name
        else:
            assert array.dtype == np.float32
            assert np.abs(array).max() <= 2 * 0.02 + 1e-6, name
            if array.size > 500:
                # A normal distribution cut off at two deviations has 0.88 of its deviation.
                assert array.std() == pytest.approx(0.88 * 0.02, rel=0.1), name


def test_the_same_seed_makes_the_same_model():
    def make(seed):
        lucid.manual_seed(seed)
        return models.BERTForPreTraining(CONFIG).state_dict()["bert.pooler.dense.weight"]

    np.testing.assert_array_equal(make(3), make(3))
    assert (make(3) != make(4)).any()


# --- errors: each names the argument, what it got and what it takes


FLOATS = np.zeros((B, T), np.float32)


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"input_ids": np.zeros(T, np.int64)}, ["input_ids", "(12,)"]),
        ({"input_ids": np.zeros((B, T, 1), np.int64)}, ["input_ids", "(4, 12, 1)"]),
        ({"input_ids": np.zeros((B, 0), np.int64)}, ["input_ids", "(4, 0)"]),
        ({"input_ids": FLOATS}, ["input_ids", "float32", "integer"]),
        ({"attention_mask": np.ones((B, T - 1), np.int64)}, ["attention_mask", "(4, 11)", "(4, 12)"]),
        ({"attention_mask": np.ones(T, np.int64)}, ["attention_mask", "(12,)", "(4, 12)"]),
        ({"token_type_ids": np.zeros((B + 1, T), np.int64)}, ["token_type_ids", "(5, 12)", "(4, 12)"]),
        ({"token_type_ids": FLOATS}, ["token_type_ids", "float32", "integer"]),
        ({"position_ids": np.zeros((B, T + 1), np.int64)}, ["position_ids", "(4, 13)", "12)"]),
        ({"mlm_labels": np.full((B, T + 1), IGNORED)}, ["mlm_labels", "(4, 13)", "(4, 12)"]),
        ({"mlm_labels": np.full(B * T, IGNORED)}, ["mlm_labels", "(48,)", "(4, 12)"]),
        ({"mlm_labels": FLOATS}, ["mlm_labels", "float32", "integer"]),
        ({"nsp_labels": np.zeros(B + 1, np.int64)}, ["nsp_labels", "(5,)", "(4,)"]),
        ({"nsp_labels": np.zeros((B, 2), np.int64)}, ["nsp_labels", "(4, 2)", "(4,)"]),
        ({"input_ids": None, "inputs_embeds": np.zeros((B, T), np.float32)}, ["inputs_embeds", "(4, 12)", "32"]),
        ({"input_ids": None, "inputs_embeds": np.zeros((B, T, 31), np.float32)}, ["inputs_embeds", "31", "32"]),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_the_error_for_a_wrong_shape_or_dtype_names_the_argument(model, arrays, changes, fragments):
    assert_refused(model, arrays | changes, fragments)


def assert_refused(model, arguments, fragments):
    with pytest.raises(ValueError, match=re.escape(fragments[0])) as caught:
        model.get_loss(**arguments)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "value", "fragments"),
    [
        ("input_ids", V, ["120", "119"]),
        ("input_ids", -1, ["-1", "119"]),
        ("token_type_ids", 2, ["2", "1"]),
        ("token_type_ids", -1, ["-1", "1"]),
        ("position_ids", 16, ["16", "15"]),
        ("position_ids", -3, ["-3", "15"]),
        ("mlm_labels", V, ["120", "119", "-100"]),
        ("mlm_labels", -1, ["-1", "119", "-100"]),
        ("nsp_labels", 2, ["2", "1"]),
        ("nsp_labels", -1, ["-1", "1"]),
        ("attention_mask", 2, ["2", "1"]),
        ("attention_mask", -1, ["-1", "1"]),
    ],
)
def test_the_error_for_a_value_out_of_range_names_the_argument(model, arrays, argument, value, fragments):
    changed = np.array(arrays.get(argument, np.zeros((B, T), np.int64)))
    changed.flat[changed.size // 2] = value
    assert_refused(model, arrays | {argument: changed}, [argument, *fragments])


def test_a_sequence_longer_than_the_positions_is_refused(model):
    with pytest.raises(ValueError, match=r"input_ids.*17.*max_position_embeddings.*16"):
        model(np.ones((1, 17), np.int64))
    with pytest.raises(ValueError, match=r"inputs_embeds.*17.*max_position_embeddings.*16"):
        model(inputs_embeds=np.ones((1, 17, 32), np.float32))


@pytest.mark.parametrize("method", ["forward", "predict_mlm_token_ids", "predict_nsp_labels"])
def test_a_method_takes_either_ids_or_embeddings(model, arrays, method):
    both = {"input_ids": arrays["input_ids"], "inputs_embeds": np.zeros((B, T, 32), np.float32)}
    for arguments in (both, {}):
        with pytest.raises(ValueError, match=r"input_ids.*inputs_embeds"):
            getattr(model, method)(**arguments)


@pytest.mark.parametrize(
    ("method", "labels", "name"),
    [
        ("get_mlm_loss", np.full((B, T), V), "mlm_labels"),
        ("get_mlm_accuracy", np.full((B, T), V), "mlm_labels"),
        ("get_mlm_accuracy", np.full((B, T - 1), 1), "mlm_labels"),
        ("get_nsp_loss", np.full(B, 2), "nsp_labels"),
        ("get_nsp_accuracy", np.full(B, 2), "nsp_labels"),
        ("get_nsp_accuracy", np.full(B + 1, 1), "nsp_labels"),
    ],
)
def test_every_method_with_labels_checks_them(model, arrays, method, labels, name):
    with pytest.raises(ValueError, match=name):
        getattr(model, method)(labels, input_ids=arrays["input_ids"])


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"input_ids": np.ones(5, np.int64)}, ["input_ids", "(5,)"]),
        ({"input_ids": np.full((2, 3), V)}, ["input_ids", "120", "119"]),
        ({"attention_mask": np.ones((2, 4), np.int64)}, ["attention_mask", "(2, 4)", "(2, 3)"]),
        ({"special_tokens_mask": np.ones((3, 3), np.int64)}, ["special_tokens_mask", "(3, 3)", "(2, 3)"]),
        ({"mask_token_id": V}, ["mask_token_id", "120", "119"]),
        ({"mlm_probability": 1.5}, ["mlm_probability", "1.5"]),
        ({"mask_replace_prob": -0.1}, ["mask_replace_prob", "-0.1"]),
        ({"mask_replace_prob": 0.8, "random_replace_prob": 0.3}, ["mask_replace_prob", "random_replace_prob"]),
        ({"ignore_index": 5}, ["ignore_index", "5"]),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_masking_names_the_argument_that_it_refuses(model, changes, fragments):
    with pytest.raises(ValueError, match=re.escape(fragments[0])) as caught:
        model.create_masked_lm_inputs(**({"input_ids": np.ones((2, 3), np.int64)} | changes))
    for fragment in fragments:
        assert fragment in str(caught.value)
