"""Settings and metrics from a stranger: they are read, or refused in a sentence; nothing else happens."""

import json
from pathlib import Path

import pytest
import yaml
from damage import HOSTILE_VALUES, damaged, damaged_json, refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lucid.analysis.plots import plot_runs
from lucid.errors import ConfigError, DataError
from lucid.training.config import RunConfig, from_dict, load
from lucid.training.log.metrics import read_lines

MINIMAL = {"run_folder": "runs/x", "data": {"path": "data/x"}, "train": {"steps": 100, "global_batch": 8}}
COMPLETE = RunConfig.model_validate(MINIMAL).as_dict()
TEXT = yaml.safe_dump(MINIMAL)

YAML_PARTS = [
    *(
        "a",
        ": ",
        "- ",
        "\n",
        "  ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "&a ",
        "*a",
        "<<: ",
        "? ",
        "\t",
        "@",
        "#",
        "%",
        "---\n",
        '"',
        "'",
    ),
    *(
        "|",
        ">",
        "!!",
        "!!int ",
        "!!bool ",
        "!!timestamp ",
        "!!set ",
        "!!omap ",
        "!!binary ",
        "2020-13-01",
        "1:1",
        "0x",
        "0b",
    ),
    *("-", ".inf", ".nan", "1e400", "null", "~", "\\ud800", "train", "data: ", "steps: "),
]

in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    message = refusal(ConfigError, lambda: load(path))
    assert message is None or str(path) in message


@in_one_folder
@given(content=damaged(yaml.safe_dump(COMPLETE).encode()))
def test_damaged_settings_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    read_or_refused(tmp_path / "run.yaml", content)


@in_one_folder
@given(parts=st.lists(st.sampled_from(YAML_PARTS), max_size=30))
def test_what_looks_like_yaml_is_read_or_refused(tmp_path: Path, parts: list[str]) -> None:
    read_or_refused(tmp_path / "run.yaml", "".join(parts).encode())
    with pytest.raises(ConfigError):
        load(tmp_path / "run.yaml", ["train.steps=" + "".join(parts), "train.steps=0"])


@given(content=damaged_json(COMPLETE))
def test_settings_of_a_checkpoint_are_taken_or_refused(content: object) -> None:
    refusal(ConfigError, lambda: from_dict(content))


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (BOMB, "aliases (*name) are not supported"),
        ("a: &a {<<: *a}", "aliases (*name) are not supported"),
        ("[" * 5000, "nested too deeply"),
        ("a: 2020-99-99", "is not valid YAML"),
        ("a: !!timestamp x", "is not valid YAML"),
        ("a: !!bool x", "is not valid YAML"),
        ("a: " + "1" * 5000, "is not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "is not valid YAML"),
        ("# " + "x" * 300_000, "is longer than 262,144 characters"),
        (TEXT.replace("data/x", '"a\\0b"'), "data.path: a path cannot hold this character"),
        (TEXT.replace("data/x", '"\\ud800"'), "data.path: a path cannot hold this character"),
        (TEXT.replace("data/x", "x" * 300), "data.path: a path cannot be this long"),
        (TEXT.replace("100", "0x" + "f" * 9000), "train.steps is a number of thousands of digits"),
        (TEXT.replace("100", "2147483648"), "train.steps is 2147483648, but it should be less than 2147483648"),
        (TEXT + "optimizer: {weight_decay: .inf}", "optimizer.weight_decay is inf, but it should be a finite number"),
        (TEXT + "model: {layer_norm_eps: 1" + "0" * 400 + "}", "model.layer_norm_eps"),
        (TEXT + "optimizer: {betas: [0.9]}", "the key optimizer.betas.1 is missing"),
        (TEXT + "1: 2", "keys should be strings"),
        (TEXT + '"\\ud800": 2', "a name is '\\ud800', but it should be text in UTF-8"),
    ],
    ids=lambda value: value[:30],
)
def test_hostile_settings_are_refused_in_a_sentence(tmp_path: Path, text: str, fragment: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "run.yaml")
    assert fragment in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_of_many_mistakes_the_first_are_told(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("".join(f"key{number}: 0\n" for number in range(5000)))
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "run.yaml")
    assert str(caught.value).count("\n") == 19


LINES = b"".join(
    json.dumps({"step": step, "mlm_loss": 7.5, "nsp_loss": None, "held_out_mlm_loss": 7.0}).encode() + b"\n"
    for step in range(1, 4)
)


@in_one_folder
@given(content=damaged(LINES))
def test_of_a_damaged_log_the_whole_lines_are_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert len(read_lines(tmp_path / "metrics.jsonl")) <= 4


def test_a_log_of_hostile_values_is_drawn_without_them(tmp_path: Path) -> None:
    lines = [json.dumps({"step": 2, "mlm_loss": value}) for value in HOSTILE_VALUES]
    lines += [json.dumps({"step": value, "mlm_loss": 1.0}) for value in HOSTILE_VALUES]
    lines += ["[" * 100_000, '{"step": 1e400, "mlm_loss": 1}', '{"step": 3, "mlm_loss": -1e400}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    plot_runs([tmp_path], tmp_path / "loss.png")
    assert {type(line["mlm_loss"]) for line in read_lines(tmp_path / "metrics.jsonl")} <= {int, float, bool, type(None)}


def test_names_of_corpora_in_a_log_are_drawn_as_they_are(tmp_path: Path) -> None:
    names = ("$\\foo$", "_", "\n", "a" * 10_000, "\U0001f600")
    values = {"mlm_loss": 7.5} | {f"held_out_mlm_loss/{name}": 7.0 for name in names}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, **values}))
    plot_runs([tmp_path], tmp_path / "loss.png")


def test_a_log_without_a_whole_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\x00" * 1000)
    with pytest.raises(DataError, match="has no losses yet"):
        plot_runs([tmp_path], tmp_path / "loss.png")


def test_a_picture_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(LINES)
    with pytest.raises(ConfigError, match=r"loss\.xyz could not be drawn"):
        plot_runs([tmp_path], tmp_path / "loss.xyz")
