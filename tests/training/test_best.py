"""The step with the least held-out loss keeps its checkpoint, also if patience has ended the run after it."""

import json
import re

import pytest

from lucid.cli.plan.outline import outline
from lucid.distributed import StopRequest
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.errors import CheckpointError, ConfigError
from lucid.preparation import prepare
from lucid.training import run
from lucid.training.checkpoints.checkpoint import read_state
from lucid.training.checkpoints.store import find_model
from lucid.training.config import load
from lucid.training.corpora import open_corpora
from lucid.training.history import History

# At this learning rate the held-out loss is least at step 12 for a while.
OVERSHOOTING = ("optimizer.learning_rate=0.03", "train.evaluate_every=4")
PATIENT = (*OVERSHOOTING, "train.patience=3")
# Held-out samples that neither ranks nor micro-batches share evenly.
EXACT = (*("train.reduction=exact", "train.global_batch=16", "train.micro_batch=2"), "train.evaluation_samples=23")


def evaluations(run_folder):
    """Return the held-out loss (MLM + NSP) by step."""
    lines = map(json.loads, (run_folder / "metrics.jsonl").read_text().splitlines())
    held_out = [line for line in lines if "held_out_mlm_loss" in line]
    return {line["step"]: line["held_out_mlm_loss"] + line["held_out_nsp_loss"] for line in held_out}


def steps_in(run_folder):
    return sorted(int(path.name[-8:]) for path in (run_folder / "checkpoints").glob("[0-9]*"))


def results(run_folder):
    """Return all that must not depend on how the run was started: evaluations, what the state notes, weights."""
    newest = find_model(run_folder)
    return evaluations(run_folder), read_state(newest).best, (newest / "model.safetensors").read_bytes()


@pytest.fixture
def train(run_file, tmp_path, capsys):
    """A function that trains the run on one rank in this process, and returns what it printed."""

    def train(*overrides):
        assert run(load(run_file, overrides), SingleCommunicator(), StopRequest()) == 0
        return capsys.readouterr().out

    return train


def test_the_best_step_keeps_its_checkpoint_though_no_checkpoint_was_due(train, tmp_path):
    train(*OVERSHOOTING, "train.keep_best=true", "train.steps=30", "train.keep_checkpoints=1")
    losses = evaluations(tmp_path / "run")
    best = min(losses, key=losses.get)
    assert (best, steps_in(tmp_path / "run")) == (12, [12, 30])
    found = find_model(tmp_path / "run", best=True)
    assert found.name == "0001-00000012"
    assert read_state(found).best.loss == losses[12]
    assert find_model(tmp_path / "run").name == "0001-00000030"


def test_keeping_the_best_changes_neither_weights_nor_losses(train, tmp_path):
    for keep_best in ("true", "false"):
        folder = f"run_folder={tmp_path / keep_best}"
        train(*OVERSHOOTING, "train.steps=30", f"train.keep_best={keep_best}", folder)
    assert results(tmp_path / "true") == results(tmp_path / "false")


def test_the_last_evaluation_may_be_the_best(train, tmp_path):
    train("train.evaluate_every=4", "train.keep_best=true", "train.steps=10", "train.keep_checkpoints=1")
    assert list(evaluations(tmp_path / "run")) == [4, 8, 10]
    assert find_model(tmp_path / "run", best=True) == find_model(tmp_path / "run")
    assert steps_in(tmp_path / "run") == [10]


def test_a_run_ends_when_patience_does_and_stays_ended_until_there_is_more(train, run_file, tmp_path):
    output = train(*PATIENT, "train.keep_checkpoints=1")
    assert (
        "finished at step 24 of 50, as the last 3 evaluations brought no smaller held-out loss than step 12: raise "
        "train.patience to go on" in output
    )
    assert re.search(r"^best .*/0001-00000012 \(held-out loss \d\.\d{4}\)$", output, re.MULTILINE)
    assert steps_in(tmp_path / "run") == [12, 24]
    before = results(tmp_path / "run")
    assert "finished at step 24 of 60, as the last 3" in train(*PATIENT, "train.steps=60")
    # Steps that never come are neither shown nor planned.
    assert [(each.first, each.last) for each in History.of(tmp_path / "run").stretches] == [(1, 24)]
    settings = load(run_file, PATIENT)
    lines = outline(settings, open_corpora(settings), 1)
    ended, *later = [text for name, text in lines if name in ("training", "work", "time")]
    assert ended.endswith("; train.patience has ended it at step 24")
    assert later == []
    assert History.of(run_file, [*OVERSHOOTING, "train.patience=4"]).last == 50
    assert results(tmp_path / "run") == before
    assert "finished at step 28 of 50, as the last 4" in train(*OVERSHOOTING, "train.patience=4")
    assert list(evaluations(tmp_path / "run")) == [4, 8, 12, 16, 20, 24, 28]


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.long)])
def test_more_ranks_stop_at_the_step_of_one_with_the_same_bits(undisturbed, ranks):
    one, more = (results(undisturbed(size, *PATIENT, *EXACT)) for size in (1, ranks))
    assert one[1].since == 3
    assert more == one


@pytest.mark.parametrize("step", [8, *(pytest.param(step, marks=pytest.mark.long) for step in (12, 19))])
def test_a_stopped_run_ends_at_the_step_of_an_undisturbed_one(train, train_until, undisturbed, tmp_path, step):
    """Step 8 is the best, and at step 20 patience ends."""
    settings = (*PATIENT, *EXACT)
    train_until(2, "run", step, *settings)
    train(*settings)
    expected = undisturbed(2, *PATIENT, *EXACT)
    assert results(tmp_path / "run") == results(expected)
    best = read_state(find_model(expected)).best
    assert (best.step, best.evaluated) == (8, 20)
    assert read_state(find_model(tmp_path / "run", best=True)).step == 8


def test_losses_on_other_samples_are_not_compared(train, tmp_path):
    settings = (*OVERSHOOTING, "train.keep_best=true", "train.keep_checkpoints=1")
    train(*settings, "train.steps=20")
    assert steps_in(tmp_path / "run") == [12, 20]
    output = train(*settings, "train.steps=24", "train.evaluation_samples=5")
    assert "the best held-out loss (step 12) was on other samples: it is sought anew" in output
    assert steps_in(tmp_path / "run") == [24]


def test_a_best_checkpoint_that_was_not_kept_is_reported(train, tmp_path):
    train(*OVERSHOOTING, "train.keep_every=20", "train.keep_checkpoints=1", "train.steps=30")
    assert steps_in(tmp_path / "run") == [20, 30]
    with pytest.raises(CheckpointError, match=r"of step 12, is not there: train\.keep_best and .* keep it"):
        find_model(tmp_path / "run", best=True)


@pytest.mark.parametrize("setting", ["keep_best=true", "patience=1"])
def test_what_needs_a_held_out_loss_is_refused_without_one(setting, run_file, text_file, tmp_path):
    with pytest.raises(ConfigError, match=r"a run without train\.evaluate_every evaluates at its end only"):
        load(run_file, [f"train.{setting}"])
    corpus = load(run_file).data.path
    prepare([text_file], tmp_path / "whole", tokenizer=corpus / "tokenizer", held_out=0)
    only_others = [f"data.path={tmp_path / 'whole'}", f"train.evaluate_also=[{corpus}]", "train.evaluate_every=2"]
    with pytest.raises(ConfigError, match=rf"train\.{setting.split('=')[0]} needs the held-out loss of data\.path"):
        open_corpora(load(run_file, [*only_others, f"train.{setting}"]))


def test_checkpoints_that_are_kept_for_ever_have_to_be_written(run_file):
    with pytest.raises(ConfigError, match=r"train\.keep_every is 30, but there are checkpoints every 20 steps"):
        load(run_file, ["train.keep_every=30"])
