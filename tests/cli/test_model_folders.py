"""Models from elsewhere that lack parts or have more: nothing is computed from random weights, and nothing is lost."""

import json
import shutil
import warnings

import pytest
import yaml
from safetensors.numpy import load_file, save_file
from tiny_run import RUN

PARTS = {"pooler": "bert.pooler.", "MLM head": "cls.predictions.", "NSP head": "cls.seq_relationship."}
SENTENCE_TRANSFORMERS = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "1_Pooling/config.json": {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True},
    "config_sentence_transformers.json": {"prompts": {}},
    "sentence_bert_config.json": {"max_seq_length": 24},
}


@pytest.fixture(autouse=True)
def without_python_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.fixture(scope="module")
def exported(run_folder, tmp_path_factory):
    """The whole model of a run, which tests do not alter."""
    from lucid.cli import main

    folder = tmp_path_factory.mktemp("exported") / "model"
    with pytest.raises(SystemExit):
        main(["export", str(run_folder), str(folder)])
    return folder


@pytest.fixture
def without(exported, tmp_path):
    """A function that makes a copy of the model without some of its parts."""

    def make(*parts):
        folder = tmp_path / "source"
        shutil.copytree(exported, folder)
        prefixes = tuple(PARTS[part] for part in parts)
        arrays = load_file(folder / "model.safetensors")
        held = {name: array for name, array in arrays.items() if not name.startswith(prefixes)}
        save_file(held, folder / "model.safetensors")
        return folder

    return make


@pytest.fixture
def settings_file(run_folder):
    return run_folder.parent / "run.yaml"


@pytest.fixture
def corpus(settings_file):
    return yaml.safe_load(settings_file.read_text())["data"]["path"]


def parts_of(folder):
    names = load_file(folder / "model.safetensors")
    return {part for part, prefix in PARTS.items() if any(name.startswith(prefix) for name in names)}


def architecture_of(folder):
    return json.loads((folder / "config.json").read_text())["architectures"]


def test_a_bare_encoder_predicts_nothing_and_has_no_loss(lucid, without, corpus):
    encoder = without("MLM head", "NSP head")
    for command in (["predict", encoder, "ba [MASK]."], ["evaluate", encoder, "--data", corpus]):
        code, output, errors = lucid(*command)
        assert (code, output) == (2, "")
        assert f"the model in {encoder} has no MLM head, so " in errors
    code, output, errors = lucid("predict", encoder, "ba co.", "--next", "fe.")
    assert (code, output) == (2, "")
    assert "has no NSP head, so it cannot judge pairs: leave out --next" in errors


def test_a_masked_language_model_judges_no_pairs(lucid, without, corpus):
    model = without("pooler", "NSP head")
    assert lucid("predict", model, "ba [MASK].")[0] == 0
    for text in ("ba co.", "ba [MASK]."):
        code, output, errors = lucid("predict", model, text, "--next", "fe.")
        assert (code, output) == (2, "")
        assert "has no pooler and NSP head, so it cannot judge pairs" in errors
    code, output, _ = lucid("evaluate", model, "--data", corpus, "--samples", 5)
    assert code == 0
    remark, result = output.splitlines()
    assert remark == f"{model} cannot judge pairs: only the MLM head is evaluated"
    assert "MLM loss" in result
    assert "NSP" not in result


@pytest.mark.parametrize(
    ("missing", "architecture"),
    [
        (("MLM head", "NSP head"), "BertModel"),
        (("pooler", "NSP head"), "BertForMaskedLM"),
        (("pooler",), "BertForMaskedLM"),
        (("MLM head",), "BertForNextSentencePrediction"),
        ((), "BertForPreTraining"),
    ],
)
def test_an_export_has_the_parts_of_its_source(missing, architecture, lucid, without, tmp_path):
    code, output, _ = lucid("export", without(*missing), tmp_path / "model")
    assert code == 0
    # The head for pairs needs the pooler.
    left_out = {*missing, "NSP head"} if "pooler" in missing else {*missing}
    assert parts_of(tmp_path / "model") == PARTS.keys() - left_out
    assert architecture_of(tmp_path / "model") == [architecture]
    assert ("has none that was trained" in output) == bool(missing)


def test_a_run_says_which_parts_begin_anew_and_exports_only_what_it_trained(lucid, without, settings_file, tmp_path):
    encoder = without("MLM head", "NSP head")
    run = [settings_file, f"run_folder={tmp_path / 'run'}", "train.steps=1", "data.nsp=false"]
    code, output, _ = lucid("train", *run, f"initial_model={encoder}")
    assert code == 0
    assert output.count(f"{encoder} has no MLM head and NSP head: newly initialised") == 1
    # The parts are known after another start too, though the model may no longer be there.
    shutil.rmtree(encoder)
    assert lucid("train", *run, "train.steps=2")[0] == 0
    _, output, _ = lucid("export", tmp_path / "run", tmp_path / "model")
    assert "it has no NSP head, because" in output
    assert parts_of(tmp_path / "model") == {"pooler", "MLM head"}
    assert lucid("train", *run, "train.steps=3", "data.nsp=true")[0] == 0
    lucid("export", tmp_path / "run", tmp_path / "trained")
    assert parts_of(tmp_path / "trained") == PARTS.keys()


def test_a_run_without_pairs_exports_no_head_for_them(lucid, settings_file, tmp_path):
    lucid("train", settings_file, f"run_folder={tmp_path / 'run'}", "train.steps=1", "data.nsp=false")
    assert lucid("export", tmp_path / "run", tmp_path / "model")[0] == 0
    assert parts_of(tmp_path / "model") == {"MLM head"}
    assert architecture_of(tmp_path / "model") == ["BertForMaskedLM"]


def test_checkpoints_and_exports_say_how_long_a_text_may_be(run_folder, exported):
    newest = max((run_folder / "checkpoints").iterdir())
    for folder in (newest, exported):
        config = json.loads((folder / "tokenizer_config.json").read_text())
        assert config["model_max_length"] == RUN["model"]["max_position_embeddings"]


def write_sentence_transformers(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))


def test_the_files_of_sentence_transformers_are_kept(lucid, without, settings_file, tmp_path):
    source, run, model = without("MLM head", "NSP head"), tmp_path / "run", tmp_path / "model"
    write_sentence_transformers(source, SENTENCE_TRANSFORMERS)
    one_step = f"run_folder={run}", "train.steps=1"
    assert lucid("train", settings_file, f"initial_model={source}", *one_step)[0] == 0
    lucid("export", run, model)
    # An exported folder is exported again.
    lucid("export", model, tmp_path / "again")
    for folder in (model, tmp_path / "again"):
        for name, content in SENTENCE_TRANSFORMERS.items():
            assert json.loads((folder / name).read_text()) == content


@pytest.mark.parametrize("encoder", [{}, {"sentence_bert_config.json": {"max_seq_length": None}}])
def test_the_length_of_sentences_is_kept_where_only_the_tokenizer_has_it(encoder, lucid, without, tmp_path):
    source = without()
    files = {name: content for name, content in SENTENCE_TRANSFORMERS.items() if not name.startswith("sentence_bert")}
    files |= encoder
    write_sentence_transformers(source, files)
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 20}))
    lucid("export", source, tmp_path / "model")
    assert json.loads((tmp_path / "model/sentence_bert_config.json").read_text()) == {"max_seq_length": 20}
    assert json.loads((tmp_path / "model/tokenizer_config.json").read_text())["model_max_length"] == 32


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ({"path": "2_Dense", "type": "sentence_transformers.models.Dense"}, "a module Dense, whose weights"),
        ({"path": "../elsewhere", "type": "sentence_transformers.models.Pooling"}, "is not the name of a folder"),
        ({"type": "sentence_transformers.models.Pooling"}, "does not list modules"),
        (3, "does not list modules"),
    ],
)
def test_modules_that_cannot_be_kept_are_left_out_with_the_reason(module, reason, lucid, without, tmp_path):
    source = without()
    modules = [SENTENCE_TRANSFORMERS["modules.json"][0], module]
    write_sentence_transformers(source, {"modules.json": modules})
    code, output, _ = lucid("export", source, tmp_path / "model")
    assert code == 0
    assert f"{source / 'modules.json'} is left out: " in output
    assert reason in output
    assert not (tmp_path / "model" / "modules.json").exists()
