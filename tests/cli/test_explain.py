"""`lucid explain`: what it prints of a run, of its log alone, and of spikes with their rows."""

import json
import shutil

import pytest
import yaml
from tiny_run import RUN

from lucid.analysis.explained import worst_rows
from lucid.cli import main
from lucid.training.explanations import corpora
from lucid.training.explanations.steps import Spike
from lucid.training.history import History

SPIKE = 20


@pytest.fixture(scope="module")
def spiked_run(corpus_folder, tmp_path_factory):
    """A run in whose log the loss of one step is ten times as large."""
    folder = tmp_path_factory.mktemp("spiked")
    train = RUN["train"] | {
        "steps": 30,
        "log_every": 1,
        "evaluate_every": 15,
        "checkpoint_every": 10,
        "keep_checkpoints": 3,
    }
    data = {"path": str(corpus_folder), "sequence_length": 32}
    settings = {**RUN, "train": train, "run_folder": str(folder / "run"), "data": data}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as leaving:
        main(["train", str(folder / "run.yaml")])
    assert leaving.value.code == 0
    log = folder / "run" / "metrics.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    for entry in entries:
        if entry["step"] == SPIKE and "mlm_loss" in entry:
            entry["mlm_loss"] *= 10
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder / "run"


def test_a_run_is_explained_with_its_spikes(lucid, spiked_run):
    before = sorted(spiked_run.rglob("*"))
    code, output, errors = lucid("explain", spiked_run)
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith("30 steps, training MLM loss ")
    assert "held-out MLM loss" in lines[0]
    assert "by token frequency" in lines[0]
    assert "by bigrams" in lines[0]
    assert any(line.startswith("warning: step 20: MLM loss ") for line in lines)
    assert lines[lines.index("spikes:") + 1].startswith(f"  step {SPIKE}: MLM loss ")
    assert sorted(spiked_run.rglob("*")) == before


def test_the_rows_of_a_spike_are_shown_with_their_losses(lucid, spiked_run):
    code, output, errors = lucid("explain", spiked_run, "--rows", 2)
    assert (code, errors) == (0, "")
    assert output.count(f"step {SPIKE} of 30: row ") == 2
    assert "at the checkpoint of step 10" in output


def test_the_rows_shown_are_those_with_the_largest_loss(lucid, spiked_run):
    history = History.of(spiked_run)
    shown = "--rows", "all", "--loss", "--checkpoint", 10, "--json"
    printed = [lucid("show", spiked_run, "--step", step, *shown)[1] for step in (19, 20)]
    rows = [json.loads(line) for output in printed for line in output.splitlines()]
    losses = {(row["step"], row["row"]): row["losses"]["mlm"] / row["losses"]["masked"] for row in rows}
    expected = sorted(losses, key=losses.get, reverse=True)[:3]
    found = worst_rows(history, Spike(19, 20, "mlm_loss", 9.0, 5.0), 3)
    assert [(step, row) for step, row, _ in found] == expected


@pytest.mark.parametrize(("log_every", "times"), [(4, 1), (2, 2)])
def test_the_end_repeats_a_warning_if_steps_lie_between(lucid, corpus_folder, tmp_path, monkeypatch, log_every, times):
    monkeypatch.setattr(corpora, "_REPEATED", -1.0)
    train = RUN["train"] | {"steps": 4, "log_every": log_every, "evaluate_every": 4}
    settings = {**RUN, "train": train, "run_folder": str(tmp_path / "run"), "data": {"path": str(corpus_folder)}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    code, output, _ = lucid("train", tmp_path / "run.yaml", "data.sequence_length=32")
    assert code == 0
    assert output.count("are in sentences that came before") == times


def test_a_run_that_ended_early_is_explained_as_a_whole(lucid, corpus_folder, tmp_path):
    """Half of its 400 steps, which rules wait for, has not been taken."""
    train = RUN["train"] | {"steps": 400, "evaluate_every": 2, "patience": 2}
    settings = {**RUN, "train": train, "run_folder": str(tmp_path / "run"), "data": {"path": str(corpus_folder)}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    rate = "optimizer.learning_rate=0.5"
    _, trained, _ = lucid("train", tmp_path / "run.yaml", "data.sequence_length=32", rate)
    assert "brought no smaller held-out loss" in trained
    expected = [line.removeprefix("warning     ") for line in trained.splitlines() if line.startswith("warning     ")]
    assert any("above the loss of token frequency" in line for line in expected)
    code, explained, _ = lucid("explain", tmp_path / "run")
    assert code == 0
    assert {f"warning: {line}" for line in expected} <= set(explained.splitlines())


def test_damaged_lines_of_the_log_are_counted(lucid, spiked_run, tmp_path):
    lines = (spiked_run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join([*lines[:3], lines[3][:9] + "\n", *lines[4:], lines[-1][:9]]))
    code, _, errors = lucid("explain", tmp_path)
    assert code == 0
    log = tmp_path / "metrics.jsonl"
    assert errors.splitlines()[0] == f"{log}: line 4 (and 1 line after it) cannot be read and is left out"


def test_the_log_alone_is_explained(lucid, spiked_run, tmp_path):
    shutil.copy(spiked_run / "metrics.jsonl", tmp_path)
    code, output, errors = lucid("explain", tmp_path)
    assert code == 0
    assert "warning: step 20: MLM loss" in output
    assert errors == f"{tmp_path} has no checkpoint: rules that need settings or corpora of the run are left out\n"


def test_without_its_corpus_a_run_is_explained_by_its_log_and_settings(lucid, spiked_run):
    code, output, errors = lucid("explain", spiked_run, "data.path=/nowhere")
    assert code == 0
    assert "warning: step 20: MLM loss" in output
    assert errors.startswith("rules that need the corpora of the run are left out: /nowhere does not exist")


def test_a_log_without_lines_says_nothing(lucid, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("damaged\n")
    code, _, errors = lucid("explain", tmp_path)
    assert (code, errors.count("\n")) == (2, 1)
    assert "metrics.jsonl has no line that can be read: has the run logged a step yet?" in errors


def test_other_settings_cannot_be_given(lucid, spiked_run):
    code, _, errors = lucid("explain", spiked_run, "train.steps=3")
    assert code == 2
    assert "only data.path can be given anew" in errors
