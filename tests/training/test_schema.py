"""The JSON schema describes every setting, and takes and refuses what lucid takes and refuses."""

from pathlib import Path

import pytest

from lucid.errors import ConfigError
from lucid.training.config import json_schema, load
from lucid.training.config.described import descriptions
from lucid.training.config.yaml_text import parse_yaml

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = "run_folder: runs/x\ndata: {path: data/x}\ntrain: {steps: 100, global_batch: 8}\n"


def described() -> dict[str, dict]:
    """Return what the schema says about each setting, by dotted key."""
    schema = json_schema()
    found = {}
    for name, about in schema["properties"].items():
        found[name] = about
        inner = schema["$defs"].get(about.get("$ref", "").rpartition("/")[2], {"properties": {}})
        found |= {f"{name}.{key}": value for key, value in inner["properties"].items()}
    return found


def test_every_setting_has_its_description_and_its_default():
    found = described()
    assert {name: about["description"] for name, about in found.items() if name != "base"} == descriptions()
    assert "relative to this file" in found["base"]["description"]
    without = {name for name, about in found.items() if "default" not in about}
    assert without == {"base", "run_folder", "model", "data", "data.path", "train", "train.steps", "train.global_batch"}


@pytest.fixture(scope="module")
def mistakes():
    """A function that returns the mistakes that the schema finds in a text."""
    validators = pytest.importorskip("jsonschema")
    kind = validators.validators.validator_for(json_schema())
    kind.check_schema(json_schema())
    return lambda text: [error.message for error in kind(json_schema()).iter_errors(parse_yaml(text))]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_fit(mistakes, path):
    assert mistakes(path.read_text()) == []


@pytest.mark.parametrize(
    "more",
    [
        "model: {hidden_act: gelu_pytorch_tanh, hidden_dropout_prob: 0}",
        "optimizer: {schedule: wsd, decay_steps: 10, betas: [0.9, 0.95]}",
        "initial_model: null\nbranch_from: runs/y",
    ],
)
def test_settings_that_lucid_takes_fit(mistakes, tmp_path, more):
    (tmp_path / "run.yaml").write_text(SMALL + more)
    load(tmp_path / "run.yaml")
    assert mistakes(SMALL + more) == []


@pytest.mark.parametrize(
    ("text", "about"),
    [
        (SMALL + "tarin: {}", "tarin"),
        (SMALL + "optimizer: {epsilon: 0}", "0"),
        (SMALL + "optimizer: {schedule: cosine}", "cosine"),
        (SMALL + "model: {hidden_act: swish}", "swish"),
        (SMALL + "model: {hiden_size: 3}", "hiden_size"),
        (SMALL.replace("data/x", "[{path: a}]"), "[{'path': 'a'}]"),
        (SMALL + "distributed: {backend: true}", "True"),
        (SMALL.replace("steps: 100, ", ""), "'steps' is a required property"),
        ("run_folder: x", "'data' is a required property"),
    ],
)
def test_mistakes_are_found_as_lucid_finds_them(mistakes, tmp_path, text, about):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load(tmp_path / "run.yaml")
    assert any(about in mistake for mistake in mistakes(text))


def test_a_file_with_a_base_says_only_what_it_changes(mistakes):
    assert mistakes("base: other.yaml\ntrain: {seed: 3}\n") == []
    assert mistakes("base: 3\n") != []
