"""A run by its log: tokens, hours, restarts, and the settings in which runs differ."""

import numpy as np
import pytest
from made_up_runs import evaluation, line, run

from lucid.analysis.logged_run import LoggedRun, differing_settings, names_of
from lucid.distributed import StopRequest
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.errors import DataError
from lucid.training import run as train
from lucid.training.attempts import ATTEMPTS_FILE
from lucid.training.config import load


def test_tokens_and_hours_begin_with_the_run_and_lie_between_those_of_lines():
    logged = run([line(10), evaluation(15, 7.0), line(20), line(30, speed=16.0)])
    assert logged.at("tokens", [0, 10, 15, 30]).tolist() == [0, 3200, 4800, 9600]
    seconds = 3600 * logged.at("hours", [0, 5, 20, 25, 30])
    assert np.allclose(seconds, [0, 5, 20, 30, 40])
    assert logged.at("steps", [5, 25]).tolist() == [5, 25]


def test_pauses_between_attempts_are_no_hours_of_training():
    logged = run([line(10, time=1000.0), line(20, attempt=2, time=999_000.0)])
    assert np.allclose(3600 * logged.at("hours", [20]), [20])


def test_a_branch_begins_with_the_hours_of_the_run_that_it_branches_from():
    settings = {"branch_from": "stable"}
    logged = run([line(110), line(120)], settings=settings, step=120, training_seconds=7200 + 20.0)
    assert np.allclose(logged.at("hours", [100, 120]), [2.0, 2.0 + 20 / 3600])


@pytest.mark.parametrize("key", ["tokens", "samples", "sequences_per_second"])
@pytest.mark.parametrize("value", [None, "missing", -1.0])
def test_a_log_that_lacks_something_in_a_line_does_not_know(key, value):
    broken = line(20) | {key: value}
    if value == "missing":
        del broken[key]
    logged = run([line(10), broken])
    assert not logged.knows("tokens" if key == "tokens" else "hours")
    assert logged.knows("hours" if key == "tokens" else "tokens")
    assert logged.knows("steps")


def test_a_log_whose_counts_fall_does_not_know():
    assert not run([line(10, samples=900), line(20, samples=100)]).knows("hours")


def test_restarts_and_skipped_steps_are_found():
    logged = run([line(10), line(20, attempt=2), line(30, attempt=2, skipped_steps=2), line(40, 4, skipped_steps=2)])
    assert logged.restarts == [10, 30]
    assert logged.skips == [30]
    assert run([{"step": 1, "mlm_loss": 7.0}, {"step": 2, "mlm_loss": 6.0}]).restarts == []  # of an earlier version


def test_the_settings_that_differ_are_those_with_an_effect():
    one = run([], "a", settings={"train": {"seed": 1, "log_every": 5}}, ranks=2)
    two = run([], "b", settings={"train": {"seed": 2}, "data": {"path": "other"}}, ranks=2)
    three = run([], "c", settings={"train": {"seed": 2}}, ranks=4)
    assert differing_settings([one, two, three, run([], "d")]) == [
        {"data.path": "corpus", "train.seed": 1, "ranks": 2},
        {"data.path": "other", "train.seed": 2, "ranks": 2},
        {"data.path": "corpus", "train.seed": 2, "ranks": 4},
        {},
    ]
    assert differing_settings([two, two]) == [{}, {}]


def test_a_run_is_named_by_its_folder_or_by_its_path_if_others_have_that_name():
    assert names_of([run([], "x/a"), run([], "y/a"), run([], "z/b")]) == ["x/a", "y/a", "b"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({}, ""),
        ({"mlm_probability": 0.4}, "training masks 40% of the tokens, evaluation 15%"),
        ({"mlm_probability": [0.3, 0.15]}, "training masks 30% to 15% of the tokens, evaluation 15%"),
        ({"whole_word_mask": True}, "training masks whole words, evaluation single tokens"),
        ({"mask_replace_probability": 0.5}, "training masks by other rules than evaluation"),
    ],
)
def test_masks_that_differ_from_those_of_evaluations_are_in_words(data, sentence):
    assert run([], settings={"data": {"path": "corpus"} | data}).masking == sentence
    assert run([]).masking == ""


def test_the_settings_are_those_of_the_newest_attempt_or_else_of_the_newest_checkpoint(run_file, tmp_path):
    train(load(run_file, ["train.steps=6"]), SingleCommunicator(), StopRequest())
    trained = tmp_path / "run"
    assert LoggedRun.of(trained).config.train.steps == 6
    noted = trained / ATTEMPTS_FILE
    noted.write_text(noted.read_text().replace('"steps": 6', '"steps": 9'))
    assert (LoggedRun.of(trained).config.train.steps, LoggedRun.of(trained).ranks) == (9, 1)
    noted.unlink()
    assert (LoggedRun.of(trained).config.train.steps, LoggedRun.of(trained).ranks) == (6, 1)
    for state in trained.glob("checkpoints/*/state.json"):
        state.unlink()
    assert LoggedRun.of(trained).config is None
    assert LoggedRun.of(trained).entries


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"metrics.jsonl does not exist: is .* the folder of a run?"):
        LoggedRun.of(tmp_path)
