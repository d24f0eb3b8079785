"""What the model's documentation promises: its examples as written, its signatures, its errors."""

import inspect
import re
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

import lucid
import lucid.models as models

B, T, V = 4, 12, 120
MASK, CLS, SEP, PAD = 103, 101, 102, 0
IGNORED = -100
CONFIG = models.BERTConfig(
    vocab_size=V,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=16,
)


@pytest.fixture
def model():
    lucid.manual_seed(0)
    return models.BERTForPreTraining(CONFIG).eval()


@pytest.fixture
def arrays():
    """A batch as NumPy arrays: the last sequence is padded."""
    rng = np.random.default_rng(3)
    input_ids = rng.integers(1, 100, (B, T))
    input_ids[:, 0], input_ids[:, 6], input_ids[:, -1] = CLS, SEP, SEP
    attention_mask = np.ones((B, T), np.int64)
    attention_mask[-1, 8:] = 0
    input_ids[-1, 8:] = PAD
    mlm_labels = np.where(rng.random((B, T)) < 0.3, input_ids, IGNORED)
    mlm_labels[attention_mask == 0] = IGNORED
    mlm_labels[:, 3] = input_ids[:, 3]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": (np.arange(T) > 6).astype(np.int64) * attention_mask,
        "mlm_labels": mlm_labels,
        "nsp_labels": np.array([0, 1, 1, 0]),
    }


@pytest.fixture(params=["arrays", "tensors", "int32"])
def batch(request, arrays):
    """The same batch as all the kinds of values that the model takes."""
    kinds = {
        "arrays": lambda array: array,
        "tensors": lucid.tensor,
        "int32": lambda array: array.astype(np.int32),
    }
    return {name: kinds[request.param](array) for name, array in arrays.items()}


# --- the examples of the documentation, as written


def test_example_of_the_constructor(capsys):
    print(models.BERTForPreTraining(CONFIG))
    printed = capsys.readouterr().out
    assert printed.startswith("BERTForPreTraining(")
    assert printed.endswith(")\n")


def test_example_of_forward(model, batch):
    input_ids, attention_mask, token_type_ids = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
    prediction_scores, seq_relationship_scores = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        token_type_ids=token_type_ids,
    )
    assert isinstance(prediction_scores, lucid.Tensor)
    assert prediction_scores.shape == (B, T, V)
    assert seq_relationship_scores.shape == (B, 2)


def test_example_of_the_losses(model, batch):
    input_ids, attention_mask, token_type_ids = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
    mlm_labels, nsp_labels = batch["mlm_labels"], batch["nsp_labels"]
    mlm_loss = model.get_mlm_loss(
        mlm_labels=mlm_labels,
        input_ids=input_ids,
        attention_mask=attention_mask,
        token_type_ids=token_type_ids,
    )
    nsp_loss = model.get_nsp_loss(
        nsp_labels=nsp_labels,
        input_ids=input_ids,
        attention_mask=attention_mask,
        token_type_ids=token_type_ids,
    )
    total_loss = model.get_loss(
        mlm_labels=mlm_labels,
        nsp_labels=nsp_labels,
        input_ids=input_ids,
        attention_mask=attention_mask,
        token_type_ids=token_type_ids,
    )
    assert mlm_loss.shape == nsp_loss.shape == total_loss.shape == ()
    assert total_loss.item() == pytest.approx(mlm_loss.item() + nsp_loss.item(), rel=1e-6)
    # A fresh model knows nothing: about the logarithm of the number of classes.
    assert mlm_loss.item() == pytest.approx(np.log(V), rel=0.1)
    assert nsp_loss.item() == pytest.approx(np.log(2), rel=0.1)
    total_loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_example_of_masking_predictions_and_accuracies(model, batch):
    input_ids, attention_mask, token_type_ids = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
    nsp_labels = batch["nsp_labels"]
    masked_input_ids, mlm_labels = model.create_masked_lm_inputs(
        input_ids=input_ids,
        attention_mask=attention_mask,
    )
    mlm_pred_ids = model.predict_mlm_token_ids(
        input_ids=masked_input_ids,
        attention_mask=attention_mask,
        token_type_ids=token_type_ids,
    )
    nsp_pred = model.predict_nsp_labels(
        input_ids=input_ids,
        attention_mask=attention_mask,
        token_type_ids=token_type_ids,
    )
    mlm_acc = model.get_mlm_accuracy(
        mlm_labels=mlm_labels,
        input_ids=masked_input_ids,
        attention_mask=attention_mask,
        token_type_ids=token_type_ids,
    )
    nsp_acc = model.get_nsp_accuracy(
        nsp_labels=nsp_labels,
        input_ids=input_ids,
        attention_mask=attention_mask,
        token_type_ids=token_type_ids,
    )
    assert mlm_pred_ids.shape == (B, T)
    assert nsp_pred.shape == (B,)
    assert np.issubdtype(mlm_pred_ids.dtype, np.integer)
    assert np.issubdtype(nsp_pred.dtype, np.integer)
    alone = float(mlm_acc), nsp_acc.item()

    mlm_acc, nsp_acc, weighted_acc = model.get_accuracy(
        mlm_labels=mlm_labels,
        nsp_labels=nsp_labels,
        input_ids=masked_input_ids,
        attention_mask=attention_mask,
        token_type_ids=token_type_ids,
    )
    assert float(mlm_acc) == alone[0]
    assert 0 <= nsp_acc.item() <= 1
    assert float(weighted_acc) == pytest.approx((float(mlm_acc) + float(nsp_acc)) / 2)


# --- what the methods say about one another


def test_predictions_are_the_largest_scores(model, arrays):
    inputs = {name: arrays[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    prediction_scores, seq_relationship_scores = model(**inputs)
    np.testing.assert_array_equal(model.predict_mlm_token_ids(**inputs).numpy(), prediction_scores.numpy().argmax(-1))
    np.testing.assert_array_equal(model.predict_nsp_labels(**inputs).numpy(), seq_relationship_scores.numpy().argmax(1))


def test_accuracies_are_the_fractions_of_right_predictions(model, arrays):
    inputs = {name: arrays[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    predicted = model.predict_mlm_token_ids(**inputs).numpy()
    # Of the counted labels, exactly those in the first two rows are right.
    mlm_labels = np.where(np.arange(B)[:, None] < 2, predicted, (predicted + 1) % V)
    counted = np.arange(T) % 3 == np.arange(B)[:, None] % 3
    mlm_labels = np.where(counted, mlm_labels, IGNORED)
    nsp_labels = model.predict_nsp_labels(**inputs).numpy() ^ np.array([0, 1, 0, 0])

    mlm, nsp, weighted = model.get_accuracy(
        mlm_labels=mlm_labels, nsp_labels=nsp_labels, mlm_weight=3.0, nsp_weight=1.0, **inputs
    )
    expected = counted[:2].sum() / counted.sum()
    assert float(mlm) == pytest.approx(expected)
    assert float(nsp) == pytest.approx(0.75)
    assert float(weighted) == pytest.approx((3 * expected + 0.75) / 4)
    assert float(model.get_mlm_accuracy(mlm_labels, **inputs)) == pytest.approx(expected)
    assert float(model.get_nsp_accuracy(nsp_labels, **inputs)) == pytest.approx(0.75)


def test_accuracy_with_both_weights_zero_is_refused(model, arrays):
    with pytest.raises(ValueError, match=r"mlm_weight.*nsp_weight"):
        model.get_accuracy(**arrays, mlm_weight=0.0, nsp_weight=0.0)


def test_loss_weights_its_two_parts(model, arrays):
    inputs = {name: arrays[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    mlm_loss = model.get_mlm_loss(arrays["mlm_labels"], **inputs).item()
    nsp_loss = model.get_nsp_loss(arrays["nsp_labels"], **inputs).item()
    weighted = model.get_loss(**arrays, mlm_weight=0.25, nsp_weight=2.0)
    assert weighted.item() == pytest.approx(0.25 * mlm_loss + 2.0 * nsp_loss, rel=1e-6)


def test_loss_by_sum_is_the_mean_times_the_count_of_each_part(model, arrays):
    inputs = {name: arrays[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    mlm_labels, nsp_labels = arrays["mlm_labels"], arrays["nsp_labels"]
    masked = (mlm_labels != IGNORED).sum()
    mlm_loss = model.get_mlm_loss(mlm_labels, **inputs).item()
    nsp_loss = model.get_nsp_loss(nsp_labels, **inputs).item()
    assert model.get_mlm_loss(mlm_labels, **inputs, reduction="mean").item() == mlm_loss
    by_sum = model.get_mlm_loss(mlm_labels, **inputs, reduction="sum").item()
    assert by_sum == pytest.approx(masked * mlm_loss, rel=1e-6)
    assert model.get_nsp_loss(nsp_labels, **inputs, reduction="sum").item() == pytest.approx(B * nsp_loss, rel=1e-6)
    # The trainer's way: sums, each with its own global denominator.
    trainers = model.get_loss(**arrays, reduction="sum", mlm_weight=1 / masked, nsp_weight=1 / B).item()
    assert trainers == pytest.approx(model.get_loss(**arrays).item(), rel=1e-6)


def test_unknown_reduction_is_refused(model, arrays):
    with pytest.raises(ValueError, match=r"reduction.*median.*mean.*sum|reduction.*mean.*sum.*median"):
        model.get_loss(**arrays, reduction="median")


def test_another_ignore_index_counts_the_same_labels(model, arrays):
    expected = model.get_loss(**arrays).item()
    arrays["mlm_labels"] = np.where(arrays["mlm_labels"] == IGNORED, -1, arrays["mlm_labels"])
    assert model.get_loss(**arrays, ignore_index=-1).item() == expected


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_without_a_masked_token_the_mlm_loss_is_zero_and_all_gradients_are_finite(model, arrays, reduction):
    arrays["mlm_labels"][:] = IGNORED
    inputs = {name: arrays[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    assert model.get_mlm_loss(arrays["mlm_labels"], **inputs, reduction=reduction).item() == 0.0
    assert float(model.get_mlm_accuracy(arrays["mlm_labels"], **inputs)) == 0.0
    model.get_loss(**arrays, reduction=reduction).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or np.isfinite(parameter.grad.numpy()).all(), name
    assert np.abs(dict(model.named_parameters())["cls.seq_relationship.weight"].grad.numpy()).max() > 0


def test_arguments_left_out_mean_no_padding_one_segment_and_counting_positions(model, arrays):
    input_ids = arrays["input_ids"]
    short = model(input_ids)
    full = model(
        input_ids=input_ids,
        attention_mask=np.ones((B, T), bool),
        token_type_ids=np.zeros((B, T), np.int64),
        position_ids=np.tile(np.arange(T), (B, 1)),
    )
    for one, other in zip(short, full, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=0, atol=1e-6)


def test_positions_are_given_for_each_sequence_or_for_all(model, arrays):
    positions = np.arange(T)[::-1].copy()
    each = model(arrays["input_ids"], position_ids=np.tile(positions, (B, 1)))
    for shared in (positions, positions[None], lucid.tensor(positions)):
        for one, other in zip(model(arrays["input_ids"], position_ids=shared), each, strict=True):
            np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=0, atol=1e-6)
    assert np.abs(each[0].numpy() - model(arrays["input_ids"])[0].numpy()).max() > 1e-3


def test_embeddings_given_as_inputs_stand_for_the_ids_they_belong_to(model, arrays):
    labels = {name: arrays[name] for name in ("mlm_labels", "nsp_labels")}
    masks = {name: arrays[name] for name in ("attention_mask", "token_type_ids")}
    table = model.state_dict()["bert.embeddings.word_embeddings.weight"]
    expected = model.get_loss(**arrays).item()
    for inputs_embeds in (table[arrays["input_ids"]], lucid.tensor(table[arrays["input_ids"]])):
        assert model.get_loss(**labels, **masks, inputs_embeds=inputs_embeds).item() == pytest.approx(expected)


def test_padding_does_not_change_what_is_attended_to(model, arrays):
    other = arrays["input_ids"].copy()
    other[-1, 8:] = 42
    inputs = {name: arrays[name] for name in ("attention_mask", "token_type_ids")}
    for one, changed in zip(model(arrays["input_ids"], **inputs), model(other, **inputs), strict=True):
        one, changed = one.numpy(), changed.numpy()
        if one.ndim == 3:
            one, changed = one[-1, :8], changed[-1, :8]
        np.testing.assert_allclose(one, changed, rtol=0, atol=1e-6)


def test_dropout_is_drawn_in_training_only_and_again_from_the_same_seed(model, arrays):
    def loss():
        return model.get_loss(**arrays).item()

    assert loss() == loss()
    model.train()
    lucid.manual_seed(5)
    first, second = loss(), loss()
    lucid.manual_seed(5)
    assert (loss(), loss()) == (first, second)
    assert first != second


def test_nothing_is_recorded_without_gradients(model, arrays):
    with lucid.no_grad():
        loss = model.get_loss(**arrays)
    assert not loss.requires_grad
    assert not model.predict_nsp_labels(arrays["input_ids"]).requires_grad


def test_predictions_and_accuracies_leave_dropout_and_gradients_as_they_were(model, arrays):
    model.train()
    model.get_accuracy(**arrays)
    model.predict_mlm_token_ids(arrays["input_ids"])
    assert all(module.training for _, module in model.named_modules())
    assert all(parameter.grad is None for parameter in model.parameters())


# --- masking


@pytest.fixture
def tokens():
    """Many tokens between [CLS] and [SEP], some of them padding."""
    rng = np.random.default_rng(17)
    input_ids = rng.integers(1, 100, (400, 128))
    input_ids[:, 0], input_ids[:, 63], input_ids[:, -1] = CLS, SEP, SEP
    attention_mask = (np.arange(128) < rng.integers(64, 129, 400)[:, None]).astype(np.int64)
    special_tokens_mask = np.isin(input_ids, (CLS, SEP)).astype(np.int64)
    return input_ids, attention_mask, special_tokens_mask


def test_masking_chooses_only_attended_tokens_that_are_not_special(model, tokens):
    input_ids, attention_mask, special_tokens_mask = tokens
    masked_ids, labels = model.create_masked_lm_inputs(
        input_ids, attention_mask, special_tokens_mask, mlm_probability=0.9
    )
    masked_ids, labels = masked_ids.numpy(), labels.numpy()
    may_be_chosen = (attention_mask == 1) & (special_tokens_mask == 0)
    chosen = labels != IGNORED
    assert not chosen[~may_be_chosen].any()
    assert chosen[may_be_chosen].mean() == pytest.approx(0.9, abs=0.02)
    np.testing.assert_array_equal(masked_ids[~chosen], input_ids[~chosen])
    np.testing.assert_array_equal(labels[chosen], input_ids[chosen])


def test_masking_replaces_eight_in_ten_by_the_mask_and_one_by_a_random_token(model, tokens):
    input_ids, attention_mask, special_tokens_mask = tokens
    masked_ids, labels = model.create_masked_lm_inputs(input_ids, attention_mask, special_tokens_mask)
    masked_ids, labels = masked_ids.numpy(), labels.numpy()
    chosen = labels != IGNORED
    may_be_chosen = (attention_mask == 1) & (special_tokens_mask == 0)
    assert chosen[may_be_chosen].mean() == pytest.approx(0.15, abs=0.01)
    after, before = masked_ids[chosen], input_ids[chosen]
    # A random token is the mask, or the token itself, once in V.
    assert (after == MASK).mean() == pytest.approx(0.8 + 0.1 / V, abs=0.02)
    assert (after == before).mean() == pytest.approx(0.1 + 0.1 / V, abs=0.02)
    random_ids = after[(after != MASK) & (after != before)]
    assert random_ids.min() >= 0
    assert random_ids.max() < V
    assert len(np.unique(random_ids)) > 0.9 * V


def test_masking_honours_its_settings(model, tokens):
    input_ids, attention_mask, special_tokens_mask = tokens

    def masked(**settings):
        result = model.create_masked_lm_inputs(input_ids, attention_mask, special_tokens_mask, **settings)
        return tuple(tensor.numpy() for tensor in result)

    ids, labels = masked(mask_token_id=7, mask_replace_prob=1.0, random_replace_prob=0.0, ignore_index=-1)
    assert (labels >= -1).all()
    assert (ids[labels != -1] == 7).all()
    ids, labels = masked(mask_replace_prob=0.0, random_replace_prob=0.0)
    np.testing.assert_array_equal(ids, input_ids)
    assert (labels != IGNORED).any()
    _, labels = masked(mlm_probability=0.0)
    assert (labels == IGNORED).all()
    _, labels = masked(mlm_probability=1.0)
    np.testing.assert_array_equal(labels != IGNORED, (attention_mask == 1) & (special_tokens_mask == 0))


def test_masking_is_drawn_again_from_the_same_seed(model, tokens):
    def draw():
        return [tensor.numpy().copy() for tensor in model.create_masked_lm_inputs(*tokens)]

    lucid.manual_seed(1)
    first, second = draw(), draw()
    lucid.manual_seed(1)
    again = draw()
    lucid.manual_seed(2)
    other = draw()
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert (first[1] != second[1]).any()
    assert (first[1] != other[1]).any()


def test_masking_leaves_its_arguments_as_they_were(model, tokens):
    before = [array.copy() for array in tokens]
    model.create_masked_lm_inputs(*tokens, mlm_probability=0.9)
    for array, copy in zip(tokens, before, strict=True):
        np.testing.assert_array_equal(array, copy)


# --- signatures

INPUTS = {
    "input_ids": None,
    "attention_mask": None,
    "token_type_ids": None,
    "position_ids": None,
    "inputs_embeds": None,
}
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
def test_an_impossible_config_is_refused_by_name(changes, key):
    with pytest.raises((ValueError, lucid.errors.ConfigError), match=key):
        replace(CONFIG, **changes)


def count(model):
    return sum(parameter.size for parameter in model.parameters())


def test_base_has_the_promised_number_of_parameters():
    assert count(models.bert_for_pre_training_base()) == 110_106_428


def test_large_has_the_promised_number_of_parameters():
    # All layers are alike: two small models tell the size of the large one without its 1.3 GB.
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
def test_a_wrong_shape_or_dtype_is_refused_by_name(model, arrays, changes, fragments):
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
def test_a_value_out_of_range_is_refused_by_name(model, arrays, argument, value, fragments):
    changed = np.array(arrays.get(argument, np.zeros((B, T), np.int64)))
    changed.flat[changed.size // 2] = value
    assert_refused(model, arrays | {argument: changed}, [argument, *fragments])


def test_a_sequence_longer_than_the_positions_is_refused(model):
    with pytest.raises(ValueError, match=r"input_ids.*17.*max_position_embeddings.*16"):
        model(np.ones((1, 17), np.int64))
    with pytest.raises(ValueError, match=r"inputs_embeds.*17.*max_position_embeddings.*16"):
        model(inputs_embeds=np.ones((1, 17, 32), np.float32))


@pytest.mark.parametrize("method", ["forward", "predict_mlm_token_ids", "predict_nsp_labels"])
def test_either_ids_or_embeddings_are_taken_never_both_or_neither(model, arrays, method):
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
def test_masking_refuses_what_it_cannot_take_by_name(model, changes, fragments):
    with pytest.raises(ValueError, match=re.escape(fragments[0])) as caught:
        model.create_masked_lm_inputs(**({"input_ids": np.ones((2, 3), np.int64)} | changes))
    for fragment in fragments:
        assert fragment in str(caught.value)
