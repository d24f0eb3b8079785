"""`lucid log`: the last lines as a table, and what it refuses."""

import sys

import pytest


def test_the_last_steps_are_a_table(lucid, run_folder):
    code, output, errors = lucid("log", run_folder, "--last", 2)
    assert (code, errors) == (0, "")
    heading, *rows = output.splitlines()
    assert heading.split()[:3] == ["step", "loss", "MLM"]
    assert [row.split()[0] for row in rows] == ["4", "6"]
    assert len({len(line) for line in output.splitlines()}) <= 2  # aligned to the right
    assert len(lucid("log", run_folder)[1].splitlines()) == 5  # steps 2, 3, 4 and 6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["/nowhere"], "/nowhere/metrics.jsonl does not exist"),
        (["/nowhere", "--to", "wandb"], "/nowhere/metrics.jsonl does not exist"),
        (["RUN", "--follow"], "--follow is for sending: say where to"),
        (["RUN", "--to", "wandb"], "wandb is not installed: pip install wandb"),
        (["RUN", "--to", "mlflow"], "mlflow is not installed: pip install mlflow-skinny"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(lucid, run_folder, monkeypatch, arguments, sentence):
    for library in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, library, None)
    code, _, errors = lucid("log", *(run_folder if word == "RUN" else word for word in arguments))
    assert (code, errors.count("\n")) == (2, 1)
    assert sentence in errors


def test_a_service_whose_library_is_broken_is_not_called_missing(lucid, run_folder, tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text("import a_library_that_wandb_needs")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    code, _, errors = lucid("log", run_folder, "--to", "wandb")
    assert (code, errors.count("\n")) == (2, 1)
    assert "wandb is installed, but cannot be imported: No module named 'a_library_that_wandb_needs'" in errors


def test_an_empty_log_is_refused(lucid, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    for more in ([], ["--to", "trackio"]):
        code, _, errors = lucid("log", tmp_path, *more)
        assert code == 2
        assert "has no line that can be read" in errors
