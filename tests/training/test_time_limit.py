"""`train.max_hours`: the schedule and the run end with the training time of all attempts together."""

import json
import re
from itertools import pairwise

import pytest

from lucid.training.checkpoints.store import find_model

# Far more steps than the time is for.
ENDLESS = ("train.steps=1000000", "train.checkpoint_every=1000000")
PEAK = 3e-3


@pytest.fixture
def run_for(on_ranks, run_file, tmp_path):
    """A function that trains on two ranks for some seconds, in which the run has to finish, and returns its output."""

    def run(seconds, *overrides):
        limit = f"train.max_hours={seconds / 3600:.9f}"
        folder = f"run_folder={tmp_path / 'run'}"
        finished = on_ranks(2, "train", run_file, *ENDLESS, limit, folder, *overrides, seconds=120)
        assert finished.returncode == 0, finished.stdout
        return finished.stdout

    return run


@pytest.fixture
def lines(tmp_path):
    """A function that returns the lines of the log."""
    return lambda: [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def state(tmp_path):
    """A function that returns the state in the newest checkpoint."""
    return lambda: json.loads((find_model(tmp_path / "run") / "state.json").read_text())


def test_a_run_ends_with_its_time_saved_logged_and_evaluated(run_for, lines, state):
    output = run_for(1, "train.log_every=7")
    assert "1,000,000 steps or 0.000277778 hours of 12 sequences" in output
    (step,) = re.findall(r"finished at step ([\d,]+) of 1,000,000, as train.max_hours has passed", output)
    last = int(step.replace(",", ""))
    assert state()["step"] == last
    assert state()["training_seconds"] >= 1
    assert [line["step"] for line in lines() if "held_out_mlm_loss" in line] == [last]
    losses = [line for line in lines() if "loss" in line]
    assert losses[-1]["step"] == last
    rates = [line["learning_rate"] for line in losses]
    assert all(rate > following for rate, following in pairwise(rates))
    # It is over: nothing is trained, nor logged twice. The evaluation is done again, by the second start.
    before = lines()
    assert f"finished at step {step} of" in run_for(1, "train.log_every=7")
    *others, evaluation = lines()
    assert others == before[:-1]
    assert evaluation == before[-1] | {"attempt": 2, "time": evaluation["time"]}


def test_only_training_time_counts_including_that_of_earlier_attempts(run_for, train_until, lines, state):
    train_until(2, "run", 8, *ENDLESS, "train.max_hours=24")
    stopped = state()
    assert 0 < stopped["training_seconds"] < 3600
    seconds = stopped["training_seconds"] + 1
    run_for(seconds)
    rates = {line["step"]: line["learning_rate"] for line in lines() if "loss" in line}
    assert rates[stopped["step"]] == pytest.approx(PEAK, rel=0.05)
    expected = PEAK * (1 - stopped["training_seconds"] / seconds)
    assert rates[stopped["step"] + 1] == pytest.approx(expected, rel=1e-3)
    assert state()["training_seconds"] >= seconds
