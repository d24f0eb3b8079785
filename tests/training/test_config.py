"""Settings: which are accepted, and the messages about others."""

import re
from pathlib import Path

import pytest
import yaml

from lucid.errors import ConfigError
from lucid.training.config import NEVER, from_dict, load, only_steps
from lucid.training.config.described import as_yaml, descriptions
from lucid.training.config.effects import curve_settings
from lucid.training.config.yaml_text import parse_yaml

MINIMAL = {"run_folder": "runs/x", "data": {"path": "data/x"}, "train": {"steps": 100, "global_batch": 8}}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def test_defaults_are_filled_in_and_settings_are_frozen(file):
    config = load(file)
    assert config.model.hidden_size == 768
    assert config.optimizer.betas == (0.9, 0.999)
    assert config.data.path == Path("data/x")
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 3


def test_overrides_replace_settings_by_dotted_key(file):
    config = load(
        file, ["train.global_batch=64", "optimizer.learning_rate=2e-3", "model.hidden_size=192", "data.nsp=no"]
    )
    assert config.train.global_batch == 64
    assert config.optimizer.learning_rate == 2e-3
    assert config.model.hidden_size == 192
    assert config.data.nsp is False


def test_several_corpora_have_weights(file, places, tmp_path):
    config = load(file, ["data.path=[{path: ~/de, weight: 3}, {path: '$SCRATCH/en', weight: 0.5}]"])
    assert [(corpus.path, corpus.weight) for corpus in config.data.corpora] == [
        (Path("/home/me/de"), 3.0),
        (Path("/scratch/$me/en"), 0.5),
    ]
    again = tmp_path / "again.yaml"
    again.write_text(as_yaml(config))
    assert load(again) == from_dict(config.as_dict()) == config
    assert [(corpus.path, corpus.weight) for corpus in load(file).data.corpora] == [(Path("data/x"), 1.0)]


def test_printed_settings_can_be_loaded_again(file, tmp_path):
    overrides = "optimizer.name=lamb", "run_folder='runs: #1 é'", "train.accept_changed=[seed]"
    config = load(file, overrides)
    again = tmp_path / "again.yaml"
    again.write_text(as_yaml(config), encoding="utf-8")
    assert load(again) == config
    assert re.search(r"^  steps: \d+  # Updates of the weights\.$", as_yaml(config), re.MULTILINE)
    assert from_dict(config.as_dict()) == config


@pytest.fixture
def places(monkeypatch):
    """A home and a variable that paths may name."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/$me")
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~/x", "/home/me/x"),
        ("~", "/home/me"),
        ("$SCRATCH/r", "/scratch/$me/r"),
        ("a/${SCRATCH}r", "a/scratch/$mer"),
        ("./~x", "~x"),
        ("a~/$$b", "a~/$b"),
    ],
)
def test_homes_and_variables_in_paths_are_expanded_once(file, tmp_path, places, written, meant):
    meant = meant.replace("a/scratch", "a//scratch")
    names = ("run_folder", "data.path", "initial_model")
    config = load(file, [f"{name}='{written}'" for name in names])
    assert (config.run_folder, config.data.path, config.initial_model) == (Path(meant),) * 3
    assert from_dict(config.as_dict()) == config
    (tmp_path / "again.yaml").write_text(as_yaml(config))
    assert load(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("$UNSET/x", "the command line: run_folder: $UNSET/x names the variable UNSET, which is not set: set it"),
        ("x/$", "x/$ has a $ without the name of a variable: write $$"),
        ("~nobody-here/x", "~nobody-here/x begins with the home of an unknown user"),
    ],
)
def test_a_path_that_cannot_be_expanded_is_refused(file, places, written, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        load(file, [f"run_folder='{written}'"])


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("configs/*.yaml")), ids=lambda path: path.name)
def test_the_recipes_of_lucid_are_valid(path):
    load(path)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optimizer.betas=[0.9]", "the key optimizer.betas.1 is missing: the value is incomplete"),
        (
            "train.globalbatch=3",
            "the key train.globalbatch is unknown; did you mean train.global_batch?",
        ),
        (
            "model.hiden_size=3",
            "the key model.hiden_size is unknown; did you mean model.hidden_size?",
        ),
        ("train.attention=auto", "the key train.attention is gone: there is one implementation of attention now"),
        ("zzz=3", "the command line: the key zzz is unknown; `lucid train --print-config` lists the known ones"),
        ("train.steps=many", "the command line: train.steps is 'many', but it should be a whole number"),
        ("train.steps=true", "the command line: train.steps: it takes neither true nor false"),
        ("train.max_hours=1:30", "train.max_hours is '1:30', but it should be a number"),
        ("run_folder=''", "the command line: run_folder: a path cannot be empty"),
        ("train={steps: 3, steps: 4}", "the key steps occurs twice"),
        ("train.steps=0", "the command line: train.steps is 0, but it should be greater than or equal to 1"),
        ("optimizer.name=sgd", "the command line: optimizer.name is 'sgd', but it should be 'adamw' or 'lamb'"),
        ("model.num_attention_heads=7", "num_attention_heads (7) must divide it"),
        ("model.hidden_act=swish", "hidden_act is 'swish'; it takes one of gelu, gelu_new, relu"),
        ("data.sequence_length=1024", "data.sequence_length is 1024, but model.max_position_embeddings is 512"),
        ("optimizer.warmup_steps=100", "optimizer.warmup_steps is 100, but train.steps is 100"),
        ("data.mask_replace_probability=0.95", "add up to more than 1"),
        ("train.max_hours=0", "the command line: train.max_hours is 0, but it should be greater than 0"),
        ("optimizer.final_learning_rate=1", "optimizer.final_learning_rate is 1.0, above optimizer.learning_rate"),
        ("optimizer.decay_steps=20", "optimizer.decay_steps is 20, but optimizer.schedule is polynomial, which"),
        ("optimizer={schedule: wsd}", "optimizer.schedule is wsd, which needs optimizer.decay_steps: a fifth of"),
        ("optimizer={schedule: wsd, decay_steps: 101}", "optimizer.decay_steps (101) add up to more than train.steps"),
        (
            "optimizer={schedule: wsd, decay_steps: 9, decay_power: 2}",
            "wsd, which decays by 1 - sqrt: leave optimizer.",
        ),
        ("optimizer.schedule=cosine", "optimizer.schedule is 'cosine', but it should be 'polynomial' or 'wsd'"),
        ("data.mlm_probability=[0.3]", "the key data.mlm_probability.1 is missing: the value is incomplete"),
        ("data.mlm_probability=[0.3, 1.5]", "data.mlm_probability.1 is 1.5, but it should be less than or equal to 1"),
        ("data.mlm_probability=[0.3, true]", "data.mlm_probability: it takes neither true nor false"),
        ("data.mlm_probability=high", "data.mlm_probability is 'high', but it should be a number"),
        ("train.steps=2.5", "train.steps is 2.5, but it should be a whole number"),
        ("train.tensorboard=perhaps", "train.tensorboard is 'perhaps', but it should be true or false"),
        ("train.precision=[1]", "train.precision is [1], but it should be 'float32'"),
        ("data=3", "the command line: data is 3, but it should be a section, with a line `key: value` for each"),
        ("model=[1]", "the command line: model is [1], but it should be a section"),
        ("optimizer.betas=[0.9, 0.99, 0.999]", "optimizer.betas has 3 values, but takes 2"),
        ("optimizer.betas=0.9", "optimizer.betas is 0.9, but it should be a list: [...]"),
        ("train.steps", "'train.steps' on the command line is not of the form section.key=value"),
        ("data.path.x=1", "path is not a section"),
        ("data.path=3", "data.path is 3, but it should be a folder, or a list of {path: FOLDER, weight: NUMBER}"),
        ("run_folder=3", "the command line: run_folder is 3, but it should be a path"),
        ("data.path=[]", "the command line: data.path: several corpora are a list of one or more: [{path: FOLDER"),
        ("data.path={path: a, weight: 1}", "the command line: data.path: several corpora are a list of one or more"),
        ("data.path=[a]", "the command line: data.path.0: one of several corpora is {path: FOLDER, weight: NUMBER}"),
        ("data.path=[{path: a}]", "the command line: the key data.path.0.weight is missing"),
        ("data.path=[{path: a, weight: 0}]", "data.path.0.weight is 0, but it should be greater than 0"),
        ("data.path=[{path: a, weight: .inf}]", "data.path.0.weight is inf, but it should be a finite number"),
        ("data.path=[{path: a, weight: true}]", "data.path.0.weight: it takes neither true nor false"),
        ("data.path=[{path: a, weight: 1, name: b}]", "the key data.path.0.name is unknown; it takes path and weight"),
        ("data.path=[{path: a, weight: 1, wieght: 2}]", "data.path.0.wieght is unknown; did you mean weight?"),
        ("data.path=[{path: $UNSET, weight: 1}]", "data.path.0.path: $UNSET names the variable UNSET"),
        (
            "data.path=[{path: a, weight: 1}, {path: b/../a, weight: 1}]",
            "the command line: data.path names b/../a, which data.path already names: name a corpus once",
        ),
        (
            "train.evaluate_also=[data/x]",
            "the command line: train.evaluate_also names data/x, which data.path already names",
        ),
        ("train.evaluate_also=[a, ./a]", "train.evaluate_also names a, which train.evaluate_also already names"),
        ("train.evaluate_also=a", "the command line: train.evaluate_also is 'a', but it should be a list: [...]"),
        (
            "train.steps=[",
            "the value is not valid YAML: while parsing a flow node (line 1, column 2): expected the node content, but "
            "found the end of the text (line 1, column 2)",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(file, override, sentence):
    with pytest.raises(ConfigError) as caught:
        load(file, [override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("1e-4", 1e-4), ("+3.", 3.0), (".5", 0.5), ("1E3", 1000.0), ("-7", -7), ("0x1F", 31)],
)
def test_numbers_are_read_as_they_look(text, value):
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


def test_the_exact_reduction_refuses_gradients_rounded_between_nodes(file):
    with pytest.raises(ConfigError, match=r"exact, but distributed\.wire_dtype is bfloat16"):
        load(file, ["train.reduction=exact", "train.micro_batch=1", "distributed.wire_dtype=bfloat16"])


def test_nccl_is_refused_without_a_gpu(file):
    with pytest.raises(
        ConfigError, match=r"distributed\.backend is nccl, which is for GPUs: set train\.device to cuda"
    ):
        load(file, ["distributed.backend=nccl"])


def test_settings_of_earlier_versions_are_read(file):
    settings = load(file)
    stored = settings.as_dict()
    stored["train"]["attention"] = "auto"
    assert from_dict(stored) == settings


def test_stored_settings_above_a_later_limit_are_read(file):
    settings = load(file)
    stored = settings.as_dict()
    stored["data"] |= {"prefetch": 4000, "workers": 300}
    assert from_dict(stored) == settings.model_copy(
        update={"data": settings.data.model_copy(update={"prefetch": 1024, "workers": 256})}
    )
    with pytest.raises(ConfigError, match="prefetch"):
        from_dict(stored, ["data.prefetch=4000"])


def test_the_exact_reduction_refuses_a_time_limit(file):
    with pytest.raises(ConfigError, match="the learning rate follows the clock"):
        load(file, ["train.reduction=exact", "train.micro_batch=1", "train.max_hours=24"])


def test_a_masking_rate_that_changes_refuses_a_time_limit(file):
    with pytest.raises(ConfigError, match=r"data\.mlm_probability changes up to the last step, but with train\.max"):
        load(file, ["data.mlm_probability=[0.3, 0.15]", "train.max_hours=24"])
    assert load(file, ["data.mlm_probability=[0.2, 0.2]", "train.max_hours=24"]).masking_rate.at(99) == 0.2


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "holds no settings"),
        ("- a\n- b\n", "holds no settings"),
        ("train: [", "is not valid YAML"),
        (yaml.safe_dump({**MINIMAL, "run_folder": None}), "run_folder is None"),
        (yaml.safe_dump({**MINIMAL, "data": {}}), "the key data.path is missing: Folder of the corpus"),
        (yaml.safe_dump({**MINIMAL, "tarin": {}}), "the key tarin is unknown; did you mean train?"),
    ],
)
def test_a_mistake_in_the_file_names_the_file(file, text, fragment):
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(file) in str(caught.value)
    assert fragment in str(caught.value)


def test_every_setting_is_described(file):
    assert all(re.fullmatch(r"[A-Z].*\.", text) for text in descriptions().values())
    text = re.sub(r"\n +# ", " ", as_yaml(load(file)))  # of a long description, which has several lines
    assert all(re.search(r"(:|  # [A-Z].*\.)$", line) for line in text.splitlines())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml does not exist"):
        load(tmp_path / "none.yaml")


def test_no_rank_may_be_without_a_row(file):
    config = load(file, ["train.global_batch=8"])
    for size in (1, 3, 8):
        config.shared_by(size).check()
    with pytest.raises(ConfigError, match="9 ranks take at least one of its sequences each: start at most 8 ranks"):
        config.shared_by(9).check()


def test_of_so_many_ranks_the_most_that_may_share_the_batch_serve(file):
    assert load(file, ["train.global_batch=4"]).ranks_that_serve(10**9) == 4
    config = load(file, ["train.global_batch=12", "train.reduction=exact", "train.micro_batch=1"])
    assert [config.ranks_that_serve(most) for most in (0, 1, 2, 3, 4, 11, 10**9)] == [0, 1, 2, 2, 4, 4, 4]


def test_only_the_steps_of_a_run_are_left_and_its_log_if_it_is_asked_for(file):
    every = ("audit_every", "check_replicas_every", "checkpoint_every", "evaluate_every", "keep_every", "log_every")
    config = load(
        file,
        [*(f"train.{name}=1" for name in every), "train.patience=1", "train.evaluate_also=[gone]", "train.trace=[1,1]"],
    )
    alone, logged = (only_steps(config, keeps_log=keeps_log) for keeps_log in (False, True))
    assert {getattr(alone.train, name) for name in every} == {None, NEVER}
    assert (alone.train.patience, alone.train.keep_best, logged.train.log_every) == (None, False, 1)
    assert alone.train.trace is None
    assert alone.folders == config.data.folders
    assert curve_settings(alone) == curve_settings(config)
