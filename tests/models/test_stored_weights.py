"""Weights in the forms in which others save a BERT: under other names, in several files, with other heads or dtypes.

`tests/golden/saved_names.json` has the names that transformers gives to the tensors of each kind of model.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lucid.errors import CheckpointError
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.models.bert.shapes import parameter_shapes

GOLDEN = Path(__file__).parents[1] / "golden"
ORIGINAL = GOLDEN / "bert_gelu"
SAVED_NAMES = json.loads((GOLDEN / "saved_names.json").read_text())
# What a model of each kind lacks, and which tensors it has that no BERT for pretraining has.
KINDS = {
    "BertForPreTraining": ((), ()),
    "BertModel": (("MLM head", "NSP head"), ()),
    "BertForMaskedLM": (("pooler", "NSP head"), ()),
    "BertLMHeadModel": (("pooler", "NSP head"), ()),
    "BertForNextSentencePrediction": (("MLM head",), ()),
    "BertForSequenceClassification": (("MLM head", "NSP head"), ("classifier.bias", "classifier.weight")),
    "BertForMultipleChoice": (("MLM head", "NSP head"), ("classifier.bias", "classifier.weight")),
    "BertForTokenClassification": (("pooler", "MLM head", "NSP head"), ("classifier.bias", "classifier.weight")),
    "BertForQuestionAnswering": (("pooler", "MLM head", "NSP head"), ("qa_outputs.bias", "qa_outputs.weight")),
}


@pytest.fixture
def arrays():
    return load_file(ORIGINAL / "model.safetensors")


@pytest.fixture
def folder(tmp_path):
    """A folder with a model's configuration, but without weights."""
    shutil.copy(ORIGINAL / "config.json", tmp_path)
    return tmp_path


def write(folder, arrays, file="model.safetensors"):
    save_file(arrays, folder / file)


def write_shards(folder, arrays, count=3):
    """Write the arrays as transformers does if they exceed the size of a file; return the content of the index."""
    places = {name: f"model-{number % count:05}-of-{count:05}.safetensors" for number, name in enumerate(arrays)}
    for file in set(places.values()):
        write(folder, {name: arrays[name] for name, place in places.items() if place == file}, file)
    return write_index(folder, places)


def write_index(folder, places):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def assert_parameters(model, expected):
    state = model.state_dict()
    for name, array in expected.items():
        np.testing.assert_array_equal(state[name], array, err_msg=name)


@pytest.mark.parametrize("shape", [{}, {"num_hidden_layers": 3, "type_vocab_size": 1, "intermediate_size": 40}])
def test_the_shapes_are_those_of_a_model(shape):
    config = BERTConfig(**{"vocab_size": 50, "hidden_size": 24, "num_attention_heads": 2, **shape})
    parameters = BERTForPreTraining(config).named_parameters()
    assert dict(parameter_shapes(config)) == {name: parameter.shape for name, parameter in parameters}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_bert_gives_its_encoder_and_the_heads_that_it_has(kind, arrays, folder):
    missing, left_out = KINDS[kind]
    stored = {}
    for name in SAVED_NAMES[kind]:
        own = arrays.get(name, arrays.get(f"bert.{name}"))
        stored[name] = np.zeros((2, 32), np.float32) if own is None else own
    write(folder, stored)
    model, weights = BERTForPreTraining.read(folder)
    assert (weights.missing, tuple(sorted(weights.left_out))) == (missing, left_out)
    held = {name: array for name, array in arrays.items() if not weights.is_missing(name)}
    assert len(held) == len(stored) - len(left_out)
    assert_parameters(model, held)


def test_what_is_missing_or_left_out_is_said_in_a_sentence_each(arrays, folder):
    encoder = {name: array for name, array in arrays.items() if name.startswith("bert.")}
    write(folder, encoder | {"classifier.weight": np.zeros((2, 32), np.float32)})
    _, weights = BERTForPreTraining.read(folder)
    assert weights.remarks() == [
        f"{folder} has no MLM head and NSP head: newly initialised",
        f"{folder} also holds classifier.weight: left out, as no part of a BERT for pretraining",
    ]


@pytest.mark.parametrize("wrapper", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}", "_orig_mod.module.{}"])
@pytest.mark.parametrize("bare", [False, True])
def test_the_names_of_wrappers_are_taken_off(wrapper, bare, arrays, folder):
    if bare:
        arrays = {name: array for name, array in arrays.items() if name.startswith("bert.")}
    write(folder, {wrapper.format(name.removeprefix("bert." * bare)): array for name, array in arrays.items()})
    assert_parameters(BERTForPreTraining.read(folder)[0], arrays)


def test_a_wrapper_inside_the_model_is_taken_off(arrays, folder):
    inner = {name.replace("bert.encoder.", "bert.encoder._orig_mod."): array for name, array in arrays.items()}
    write(folder, inner)
    assert_parameters(BERTForPreTraining.read(folder)[0], arrays)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_dtypes_are_taken(dtype, arrays, folder):
    write(folder, {name: array.astype(dtype) for name, array in arrays.items()})
    expected = {name: array.astype(dtype).astype(np.float32) for name, array in arrays.items()}
    assert_parameters(BERTForPreTraining.read(folder)[0], expected)


def test_integer_buffers_are_passed_over(arrays, folder):
    buffers = {f"bert.embeddings.{name}": np.zeros((1, 48), np.int64) for name in ("position_ids", "token_type_ids")}
    write(folder, arrays | buffers)
    model, weights = BERTForPreTraining.read(folder)
    assert (weights.missing, dict(weights.left_out)) == ((), {})
    assert_parameters(model, arrays)


def test_an_untied_setting_is_decided_by_the_weights(arrays, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    decoder = arrays["bert.embeddings.word_embeddings.weight"].copy()
    write(folder, arrays | {"cls.predictions.decoder.weight": decoder})
    assert_parameters(BERTForPreTraining.read(folder)[0], arrays)
    write(folder, arrays | {"cls.predictions.decoder.weight": decoder + 1})
    with pytest.raises(CheckpointError, match=r"cls\.predictions\.decoder\.weight differs from"):
        BERTForPreTraining.read(folder)


def test_several_files_are_read_by_their_index(arrays, folder):
    write_shards(folder, arrays)
    assert_parameters(BERTForPreTraining.read(folder)[0], arrays)


@pytest.mark.parametrize(
    "place", ["../model.safetensors", "/etc/model.safetensors", "", ".", "a/b.safetensors", "model.bin", 3, None, "\0"]
)
def test_an_index_names_safetensors_files_of_its_folder_only(place, arrays, folder):
    places = write_shards(folder, arrays)
    write_index(folder, {**places, "bert.pooler.dense.bias": place})
    with pytest.raises(CheckpointError, match=r"index\.json does not say which tensor lies in which file"):
        BERTForPreTraining.read(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 99_999])
def test_a_damaged_index_is_refused(content, folder):
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        BERTForPreTraining.read(folder)


def test_files_that_differ_from_their_index_are_refused(arrays, folder):
    places = write_shards(folder, arrays)
    name = next(iter(arrays))
    others = {other: place for other, place in places.items() if other != name}
    for wrong in (others, {**places, name: next(place for place in places.values() if place != places[name])}):
        write_index(folder, wrong)
        with pytest.raises(CheckpointError, match=rf"only one of them names {re.escape(name)}"):
            BERTForPreTraining.read(folder)
    write_index(folder, places)
    (folder / places[name]).unlink()
    with pytest.raises(CheckpointError, match=re.escape(places[name])):
        BERTForPreTraining.read(folder)


def test_a_tensor_that_is_there_twice_is_refused(arrays, folder):
    write(folder, arrays | {"module.bert.pooler.dense.bias": arrays["bert.pooler.dense.bias"]})
    with pytest.raises(CheckpointError, match=r"holds bert\.pooler\.dense\.bias twice"):
        BERTForPreTraining.read(folder)


def test_a_part_of_a_head_is_damage_and_no_missing_head(arrays, folder):
    del arrays["cls.predictions.transform.dense.bias"]
    write(folder, arrays)
    with pytest.raises(CheckpointError, match=r"lacks cls\.predictions\.transform\.dense\.bias"):
        BERTForPreTraining.read(folder)


def test_names_of_another_architecture_are_shown(folder):
    write(folder, {"distilbert.transformer.layer.0.ffn.lin1.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(CheckpointError, match=r"no weights of a BERT.*such as distilbert\.transformer"):
        BERTForPreTraining.read(folder)


def test_the_message_about_a_pickle_has_the_command_that_converts_it(arrays, folder):
    (folder / "pytorch_model-00001-of-00002.bin").touch()
    with pytest.raises(CheckpointError, match=r"is a pickle.*python -c") as caught:
        BERTForPreTraining.read(folder)
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors.torch")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    words = "bert.embeddings.word_embeddings.weight"
    tensors["cls.predictions.decoder.weight"] = tensors[words]
    half = len(tensors) // 2
    for number, names in enumerate((list(tensors)[:half], list(tensors)[half:]), start=1):
        shard = {name: tensors[name] for name in names}
        torch.save(shard, folder / f"pytorch_model-{number:05}-of-00002.bin")
    command = re.search(r"python (-c .*)", str(caught.value))[1]
    subprocess.run(f"{sys.executable} {command}", shell=True, check=True, timeout=120)
    assert_parameters(BERTForPreTraining.read(folder)[0], arrays)
