"""The documentation of the model: its examples as written, and how its methods agree with each other."""

import doctest
import re
from pathlib import Path

import numpy as np
import pytest
from tiny_bert import CLS, CONFIG, IGNORED, MASK, SEP, B, T, V

import lucid
from lucid import models

# --- the examples of the documentation, as written

PAGE = Path(__file__).with_name("BERTForPreTraining.rst")


def test_the_examples_of_the_page_run_one_after_the_other(model, batch, monkeypatch):
    """The page builds BERT-base, whose size another test counts: here a tiny model stands in for it."""
    monkeypatch.setattr(models, "bert_for_pre_training_base", lambda: model)
    names = dict(batch)
    test = doctest.DocTestParser().get_doctest(PAGE.read_text(), names, PAGE.name, str(PAGE), 0)
    test.globs = names
    assert len(test.examples) == 13
    runner, report = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), []
    runner.run(test, out=report.append, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)
    total = names["mlm_loss"].item() + names["nsp_loss"].item()
    assert names["total_loss"].item() == pytest.approx(total, rel=1e-6)
    mlm, nsp, weighted = (float(names[name]) for name in ("mlm_acc", "nsp_acc", "weighted_acc"))
    assert weighted == pytest.approx((mlm + nsp) / 2)
    assert (names["mlm_pred_ids"].shape, names["nsp_pred"].shape) == ((B, T), (B,))


def test_the_page_and_the_model_have_the_same_methods():
    documented = set(re.findall(r"automethod:: lucid\.models\.BERTForPreTraining\.(\w+)", PAGE.read_text()))
    assert len(documented) == 10
    assert all(callable(getattr(models.BERTForPreTraining, name)) for name in documented)


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


# --- how the methods agree with each other


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


def test_a_row_without_a_label_is_neither_right_nor_wrong(model, arrays):
    inputs = {name: arrays[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    labels = model.predict_nsp_labels(**inputs).numpy()
    labels[1:3] = IGNORED, 1 - labels[2]
    assert float(model.get_nsp_accuracy(labels, **inputs)) == pytest.approx(2 / 3)


def test_no_two_sites_of_dropout_draw_the_same_numbers(model):
    sites = [module.site for _, module in model.named_modules() if hasattr(module, "site")]
    assert len(sites) == 1 + 3 * CONFIG.num_hidden_layers
    assert len(set(sites)) == len(sites)


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


def test_the_ignore_index_does_not_change_the_loss(model, arrays):
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


def test_defaults_mean_no_padding_one_segment_and_counted_positions(model, arrays):
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


def test_input_embeddings_replace_the_ids_that_they_belong_to(model, arrays):
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


def test_dropout_acts_in_training_only_and_follows_the_seed(model, arrays):
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
    model.bert.eval()
    model.predict_nsp_labels(arrays["input_ids"])
    assert model.training
    assert not model.bert.training
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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int8, np.int32])
def test_masking_takes_ids_of_any_integer_dtype(model, tokens, dtype):
    expected, got = [], []
    for input_ids, arrays in ((tokens[0], expected), (tokens[0].astype(dtype), got)):
        lucid.manual_seed(3)
        arrays += model.create_masked_lm_inputs(input_ids, mlm_probability=0.5)
    for one, other in zip(expected, got, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_masking_follows_the_seed(model, tokens):
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
