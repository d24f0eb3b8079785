"""The model agrees with transformers itself in more configurations than the golden files have. Needs torch."""

from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import lucid  # noqa: E402
from lucid.models import BERTConfig, BERTForPreTraining, BERTModel  # noqa: E402

# Relative to the largest element, float32 against float64: 4.6e-6 was seen.
TOLERANCE = 2e-5

TINY = {
    "vocab_size": 150,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Case:
    config: dict
    batch: int
    length: int
    mask: str  # none, right, left or holes


CASES = {
    "one_layer": Case({"num_hidden_layers": 1}, batch=2, length=16, mask="right"),
    "four_layers": Case({"num_hidden_layers": 4}, batch=3, length=17, mask="right"),
    "one_head": Case({"num_attention_heads": 1}, batch=2, length=16, mask="none"),
    "wide": Case({"hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 384}, 2, 24, mask="right"),
    "narrow_intermediate": Case({"intermediate_size": 8}, batch=2, length=16, mask="right"),
    "gelu_new": Case({"hidden_act": "gelu_new"}, batch=2, length=16, mask="right"),
    "gelu_pytorch_tanh": Case({"hidden_act": "gelu_pytorch_tanh"}, batch=2, length=16, mask="right"),
    "relu": Case({"hidden_act": "relu"}, batch=2, length=16, mask="right"),
    "large_epsilon": Case({"layer_norm_eps": 1e-3}, batch=2, length=16, mask="right"),
    "three_token_types": Case({"type_vocab_size": 3}, batch=2, length=16, mask="right"),
    "longest": Case({}, batch=2, length=64, mask="right"),
    "two_tokens": Case({}, batch=4, length=2, mask="none"),
    "one_sequence": Case({}, batch=1, length=31, mask="none"),
    "left_padded": Case({}, batch=3, length=16, mask="left"),
    "mask_with_holes": Case({}, batch=3, length=16, mask="holes"),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def random_transformers_model(changes):
    """Weights ten times wider than BERT's, biases and LayerNorms drawn too: a mistake in any of them shows."""
    config = transformers.BertConfig(**(TINY | changes))
    model = transformers.BertForPreTraining(config).eval()
    randomise(model)
    return model


def randomise(model):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2, generator=generator)
            if name.endswith("LayerNorm.weight"):
                parameter += 1.0


def random_inputs(case):
    """Return the arguments of the model and the two arrays of labels."""
    rng = np.random.default_rng(11)
    shape = case.batch, case.length
    settings = TINY | {"type_vocab_size": 2} | case.config
    lengths = rng.integers(case.length // 2, case.length + 1, case.batch)[:, None]
    mask = {
        "none": np.ones(shape, np.int64),
        "right": np.arange(case.length) < lengths,
        "left": np.arange(case.length)[::-1] < lengths,
        "holes": rng.random(shape) < 0.7,
    }[case.mask].astype(np.int64)
    mask[:, case.length // 2] = 1
    # Id 0, the padding's, is also in the text: its embedding gets no gradient from there.
    original_ids = rng.integers(0, settings["vocab_size"], shape) * mask
    masked = (rng.random(shape) < 0.2) & (mask == 1)
    masked[0, case.length // 2] = True
    inputs = {
        "input_ids": np.where(masked, 5, original_ids),
        "token_type_ids": rng.integers(0, settings["type_vocab_size"], shape),
    }
    if case.mask != "none":
        inputs["attention_mask"] = mask
    labels = np.where(masked, original_ids, -100), rng.integers(0, 2, case.batch)
    return inputs, *labels


def as_torch(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def assert_close(actual, expected, what, scale=None):
    actual, expected = actual.numpy(), expected.detach().numpy()
    assert actual.shape == expected.shape, what
    scale = np.abs(expected).max() if scale is None else scale
    error = np.abs(actual - expected).max() / scale
    assert error <= TOLERANCE, f"{what}: {error:.1e} of its largest element"


def test_logits_losses_and_gradients_agree(case, tmp_path):
    reference = random_transformers_model(case.config)
    reference.save_pretrained(tmp_path)
    model = BERTForPreTraining.from_pretrained(tmp_path).eval()
    inputs, mlm_labels, nsp_labels = random_inputs(case)

    expected = reference.double()(
        **as_torch(inputs),
        labels=torch.from_numpy(mlm_labels),
        next_sentence_label=torch.from_numpy(nsp_labels),
    )
    expected.loss.backward()

    prediction_scores, seq_relationship_scores = model(**inputs)
    assert_close(prediction_scores, expected.prediction_logits, "prediction_scores")
    assert_close(seq_relationship_scores, expected.seq_relationship_logits, "seq_relationship_scores")

    loss = model.get_loss(mlm_labels=mlm_labels, nsp_labels=nsp_labels, **inputs)
    assert_close(loss, expected.loss, "loss")
    loss.backward()
    reference_gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    parameters = dict(model.named_parameters())
    assert parameters.keys() == reference_gradients.keys()
    for name, parameter in parameters.items():
        # The gradient of a key's bias is zero. The gradient of the query's bias is the scale of its rounding.
        query_bias = reference_gradients[name.replace(".key.bias", ".query.bias")]
        assert_close(parameter.grad, reference_gradients[name], name, scale=query_bias.abs().max().item())


def test_transformers_loads_what_lucid_saves(case, tmp_path):
    random_transformers_model(case.config).save_pretrained(tmp_path / "theirs")
    model = BERTForPreTraining.from_pretrained(tmp_path / "theirs").eval()
    model.save_pretrained(tmp_path / "ours")
    reference, report = transformers.BertForPreTraining.from_pretrained(tmp_path / "ours", output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[problem], problem

    inputs, _, _ = random_inputs(case)
    with torch.no_grad():
        expected = reference.eval()(**as_torch(inputs))
    prediction_scores, seq_relationship_scores = model(**inputs)
    assert_close(prediction_scores, expected.prediction_logits, "prediction_scores")
    assert_close(seq_relationship_scores, expected.seq_relationship_logits, "seq_relationship_scores")


def test_transformers_reads_a_model_that_lucid_initialised(tmp_path):
    model = BERTForPreTraining(BERTConfig(**TINY)).eval()
    model.save_pretrained(tmp_path)
    reference = transformers.BertForPreTraining.from_pretrained(tmp_path).eval()
    input_ids = np.arange(1, 25).reshape(2, 12)
    with torch.no_grad():
        expected = reference(torch.from_numpy(input_ids))
    prediction_scores, seq_relationship_scores = model(input_ids)
    assert_close(prediction_scores, expected.prediction_logits, "prediction_scores")
    assert_close(seq_relationship_scores, expected.seq_relationship_logits, "seq_relationship_scores")


def test_a_model_without_heads_goes_to_transformers_and_back(tmp_path):
    reference = transformers.BertModel(transformers.BertConfig(**TINY)).eval()
    randomise(reference)
    reference.save_pretrained(tmp_path / "theirs")
    model = BERTModel.from_pretrained(tmp_path / "theirs").eval()
    model.save_pretrained(tmp_path / "ours")
    back, report = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(back) is transformers.BertModel
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[problem], problem
    inputs, _, _ = random_inputs(CASES["mask_with_holes"])
    hidden, pooled = model(**inputs)
    for each in (reference, back.eval()):
        with torch.no_grad():
            expected = each(**as_torch(inputs))
        assert_close(hidden, expected.last_hidden_state, "last_hidden_state")
        assert_close(pooled, expected.pooler_output, "pooler_output")


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 110_106_428),
        (
            {
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
            },
            336_226_108,
        ),
    ],
    ids=["base", "large"],
)
def test_the_documented_parameter_counts_are_those_of_transformers(changes, count):
    with torch.device("meta"):
        model = transformers.BertForPreTraining(transformers.BertConfig(**changes))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


KINDS = {
    "BertForPreTraining": ("prediction_logits", "seq_relationship_logits"),
    "BertModel": (None, None),
    "BertForMaskedLM": ("logits", None),
    "BertLMHeadModel": ("logits", None),
    "BertForNextSentencePrediction": (None, "logits"),
    "BertForSequenceClassification": (None, None),
    "BertForTokenClassification": (None, None),
    "BertForQuestionAnswering": (None, None),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["plain", "sharded", "bfloat16", "float16"])
def test_every_kind_of_bert_that_transformers_saves_has_its_outputs(kind, form, tmp_path):
    reference = getattr(transformers, kind)(transformers.BertConfig(**TINY)).eval()
    randomise(reference)
    reference.to(getattr(torch, form, torch.float32))
    reference.save_pretrained(tmp_path, max_shard_size="20KB" if form == "sharded" else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (form == "sharded")
    model, weights = BERTForPreTraining.read(tmp_path)
    # Where a head is missing, the encoder is compared through one that both sides share.
    model.save_pretrained(tmp_path / "whole")
    whole = transformers.BertForPreTraining.from_pretrained(tmp_path / "whole").eval()
    encoder = whole.bert.state_dict()
    for name, value in getattr(reference, "bert", reference).state_dict().items():
        torch.testing.assert_close(encoder[name], value.float(), rtol=0, atol=0)

    inputs, _, _ = random_inputs(CASES["two_tokens"])
    prediction_scores, seq_relationship_scores = model.eval()(**inputs)
    with torch.no_grad():
        of_whole, output = whole(**as_torch(inputs)), reference.float()(**as_torch(inputs))
    assert_close(prediction_scores, of_whole.prediction_logits, "prediction_scores")
    assert_close(seq_relationship_scores, of_whole.seq_relationship_logits, "seq_relationship_scores")
    predictions, pairs = KINDS[kind]
    assert ("MLM head" in weights.missing, "NSP head" in weights.missing) == (predictions is None, pairs is None)
    if predictions:
        assert_close(prediction_scores, output[predictions], "prediction_scores")
    if pairs:
        assert_close(seq_relationship_scores, output[pairs], "seq_relationship_scores")


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertForTokenClassification"])
def test_transformers_loads_the_classifiers_that_lucid_saves(kind, tmp_path):
    ours = getattr(lucid.models, kind.replace("Bert", "BERT"))
    lucid.manual_seed(1)
    model = ours(BERTConfig(**TINY, initializer_range=0.2), ["a", "b", "c"], classifier_dropout=0.3).eval()
    model.save_pretrained(tmp_path)
    auto = getattr(transformers, kind.replace("BertFor", "AutoModelFor"))
    reference, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[problem], problem
    assert reference.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert reference.dropout.p == 0.3
    inputs, _, _ = random_inputs(CASES["four_layers"])
    with torch.no_grad():
        expected = reference.eval()(**as_torch(inputs))
    assert_close(model(**inputs), expected.logits, "logits")


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertForTokenClassification"])
def test_lucid_loads_the_classifiers_that_transformers_saves(kind, tmp_path):
    reference = getattr(transformers, kind)(transformers.BertConfig(**TINY, num_labels=4)).eval()
    randomise(reference)
    reference.save_pretrained(tmp_path)
    model = getattr(lucid.models, kind.replace("Bert", "BERT")).from_pretrained(tmp_path).eval()
    assert model.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
    inputs, _, _ = random_inputs(CASES["four_layers"])
    with torch.no_grad():
        expected = reference.double()(**as_torch(inputs))
    assert_close(model(**inputs), expected.logits, "logits")
