"""`base`: a settings file that changes another one."""

import re

import pytest

from lucid.errors import ConfigError
from lucid.training.config import load
from lucid.training.config.described import as_yaml

BASE = """
run_folder: runs/x
model: {num_hidden_layers: 3, hidden_dropout_prob: 0.0}
data: {path: [{path: a, weight: 1}, {path: b, weight: 2}], nsp: false}
optimizer: {betas: [0.9, 0.98]}
train: {steps: 100, global_batch: 8, accept_changed: [seed, corpus]}
"""


@pytest.fixture
def write(tmp_path):
    """A function that writes a settings file, and returns its path."""

    def write(name, text):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_keys_override_those_of_the_base_and_lists_replace(write):
    write("shared/base.yaml", BASE)
    write("shared/longer.yaml", "base: base.yaml\ntrain: {steps: 200, seed: 5}\noptimizer: {warmup_steps: 10}")
    top = write(
        "top.yaml",
        "base: shared/longer.yaml\nrun_folder: runs/y\ndata: {path: c}\ntrain: {seed: 6, accept_changed: []}",
    )
    config = load(top, ["optimizer.warmup_steps=20"])
    assert (str(config.run_folder), config.data.folders[0].name, config.data.nsp) == ("runs/y", "c", False)
    assert (config.model.num_hidden_layers, config.model.hidden_dropout_prob) == (3, 0.0)
    assert (config.train.steps, config.train.global_batch, config.train.seed) == (200, 8, 6)
    assert config.train.accept_changed == ()
    assert (config.optimizer.betas, config.optimizer.warmup_steps) == ((0.9, 0.98), 20)
    # What the run records is the merged result.
    assert "base" not in config.as_dict()
    again = write("again.yaml", as_yaml(config))
    assert load(again) == config


def test_the_path_of_a_base_is_expanded(write, tmp_path, monkeypatch):
    write("shared/base.yaml", BASE)
    monkeypatch.setenv("RECIPES", str(tmp_path / "shared"))
    top = write("top.yaml", "base: $RECIPES/base.yaml")
    assert load(top).train.steps == 100


@pytest.mark.parametrize(
    ("top", "overrides", "sentence"),
    [
        ("train: {steps: 0}", [], "top.yaml: train.steps is 0, but it should be"),
        ("optimizer: {warmup_steps: 3}", [], "base.yaml: the key tarin is unknown; did you mean train?"),
        ("optimizer: {epsilon: 0}", [], "top.yaml: optimizer.epsilon is 0"),
        ("{}", ["train.steps=0"], "the command line: train.steps is 0"),
        ("base: null", [], "top.yaml: base is None, but it should be the path of another settings file"),
        ("base: [a.yaml]", [], "top.yaml: base is ['a.yaml'], but it should be the path of another settings file"),
        ("base: none.yaml", [], "none.yaml does not exist: its path is relative to"),
        ("base: top.yaml", [], "top.yaml: the files name each other as base: leave it out in one of them"),
        ("base: shared/back.yaml", [], "top.yaml: the files name each other as base: leave it out in one of them"),
        ("base: $UNSET/x.yaml", [], "top.yaml: base: $UNSET/x.yaml names the variable UNSET, which is not set"),
        ("{}", ["base=other.yaml"], "'base=other.yaml' on the command line: base stands in a settings file"),
    ],
)
def test_a_mistake_names_the_file_in_which_it_stands(write, top, overrides, sentence, monkeypatch):
    monkeypatch.delenv("UNSET", raising=False)
    write("base.yaml", f"{BASE}\ntarin: {{steps: 3}}\n")
    write("shared/back.yaml", "base: ../top.yaml")
    path = write("top.yaml", top if "base:" in top else f"base: base.yaml\n{'' if top == '{}' else top}")
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    (line,) = [line for line in str(caught.value).splitlines() if sentence in line]
    assert "\n" not in line


@pytest.mark.parametrize(
    ("top", "place"),
    [
        ("train: {global_batch: 16}", "base.yaml"),
        ("train: {steps: 5}", "top.yaml"),
    ],
)
def test_settings_that_do_not_go_together_are_told_by_the_file_that_was_given_if_it_has_one(write, top, place):
    write("base.yaml", f"{BASE}  ".replace("[0.9, 0.98]", "[0.9, 0.98], warmup_steps: 100"))
    path = write("top.yaml", f"base: base.yaml\n{top}")
    with pytest.raises(ConfigError, match=rf"/{re.escape(place)}: optimizer\.warmup_steps is 100, but train\.steps is"):
        load(path)
