"""`train.micro_batch: auto`: chosen by memory and speed, the same on all ranks, tried, and of no effect on results."""

import json
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest
from test_ranks import assert_same_curve

from lucid.cli import main
from lucid.distributed import StopRequest, announced
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.errors import ConfigError
from lucid.training import micro_batch_size, run, trial
from lucid.training.checkpoints.checkpoint import read_state
from lucid.training.checkpoints.store import find_model
from lucid.training.config import load
from lucid.training.estimates import memory
from lucid.training.micro_batch_size import chosen_micro_batch
from lucid.training.micro_batches import MicroBatches
from lucid.training.setup import open_run

AUTO = "train.micro_batch=auto"
LARGE = ("data.sequence_length=32", "train.global_batch=1000", AUTO)
FEW = ("train.steps=6", "train.checkpoint_every=3")


def test_a_cpu_gets_no_more_tokens_than_it_gains_from(run_file):
    config = load(run_file, LARGE)
    # 4,096 tokens are 128 sequences: 1,000 of them are 8 parts of 125, and 250 two parts of 125.
    assert chosen_micro_batch(config, 1, 1 << 40) == chosen_micro_batch(config, 4, 1 << 40) == 125
    assert chosen_micro_batch(config, 100, 1 << 40) == 10


def test_the_largest_that_memory_has_room_for_is_chosen(run_file):
    config = load(run_file, LARGE)

    def needed(samples, ranks):
        need = memory(config.with_micro_batch(samples), 4)
        return (need.checkpoint + sum(need.host.values()) + ranks * need.of_rank) / 0.8

    for ranks in (1, 3):
        for samples in (125, 50, 2):
            assert chosen_micro_batch(config, 4, int(needed(samples, ranks)) + 2, ranks) == samples
        assert chosen_micro_batch(config, 4, int(needed(50, ranks)) - 2, ranks) < 50
    assert chosen_micro_batch(config, 4, 0) == 1


def test_it_changes_no_loss_beyond_rounding_and_its_number_is_recorded(undisturbed, train, losses, tmp_path):
    settings = (*FEW, "data.sequence_length=32", "train.global_batch=260", AUTO)
    auto = undisturbed(2, *settings)
    assert_same_curve(losses(undisturbed(2, *FEW, "train.global_batch=260")), losses(auto))
    stored = json.loads((find_model(auto) / "state.json").read_text())
    # Two ranks with 130 each, in two parts.
    assert stored["config"]["train"]["micro_batch"] == 65
    assert stored["past"] == []


@contextmanager
def memory_for_three():
    """On the second of two ranks, or the only one, a micro-batch of more than three sequences does not fit."""
    run = MicroBatches.run

    def with_little_memory(self, rows, inputs, ends):
        if rows.grid_rows > 3:
            raise MemoryError
        return run(self, rows, inputs, ends)

    place = announced()
    with patch.object(MicroBatches, "run", run if place and place.rank == 0 else with_little_memory):
        yield


def test_what_does_not_fit_on_one_rank_is_halved_on_all_and_leaves_no_trace(on_ranks, run_file, losses, tmp_path):
    found = []
    for size in (AUTO, "train.micro_batch=3"):
        folder = tmp_path / size.removeprefix("train.micro_batch=")
        finished = on_ranks(2, "train", run_file, *FEW, size, f"run_folder={folder}", within=memory_for_three)
        assert finished.returncode == 0, finished.stdout
        assert ("train.micro_batch is auto: 3 at once, 96 tokens at most\n" in finished.stdout) == (size == AUTO)
        found.append((losses(folder), (find_model(folder) / "model.safetensors").read_bytes()))
    assert found[0] == found[1]


@pytest.fixture
def resumed(run_file, tmp_path, monkeypatch):
    """A function that trains the run on one rank to a step, with memory for so many samples; returns its last state."""

    def resumed(steps, room, *overrides):
        monkeypatch.setattr(micro_batch_size, "chosen_micro_batch", lambda *_: room)
        config = load(run_file, (AUTO, "optimizer.warmup_steps=0", f"train.steps={steps}", *overrides))
        assert run(config, SingleCommunicator(), StopRequest()) == 0
        return read_state(find_model(tmp_path / "run"))

    return resumed


def numbers(state):
    """Return the number with which a run trains now, and those of its past."""
    return state.config["train"]["micro_batch"], [past.config["train"]["micro_batch"] for past in state.past]


def test_a_resumed_run_keeps_its_number_while_memory_has_room_for_it(resumed):
    assert numbers(resumed(2, 3)) == (3, [])
    assert numbers(resumed(4, 12)) == (3, [])
    assert numbers(resumed(6, 2)) == (2, [3])
    assert numbers(resumed(8, 3)) == (2, [3])
    assert numbers(resumed(10, 6, "train.global_batch=6")) == (6, [3, 2])


def test_another_number_of_ranks_chooses_anew(resumed, run_file, monkeypatch):
    state, config = resumed(2, 3), load(run_file, [AUTO])
    monkeypatch.setattr(micro_batch_size, "chosen_micro_batch", lambda *_: 12)
    for newest, expected in ((state, 3), (replace(state, ranks=2), 12), (replace(state, ranks=None), 12)):
        found = micro_batch_size.with_chosen_micro_batch(config, SingleCommunicator(), newest)
        assert found.train.micro_batch == expected, newest.ranks


def test_the_past_notes_a_number_only_if_steps_were_taken_with_it(resumed):
    assert numbers(resumed(2, 12)) == (12, [])
    with memory_for_three():
        assert numbers(resumed(4, 12)) == (3, [12])
        # One that is halved at each start is always the same.
        assert numbers(resumed(6, 12, "data.mlm_probability=0.2")) == (3, [12, 3])
        assert numbers(resumed(8, 12, "data.mlm_probability=0.2")) == (3, [12, 3])


def test_a_host_without_room_for_one_sequence_is_told_so(monkeypatch, run_file):
    def never(*_):
        raise MemoryError

    monkeypatch.setattr(trial, "_try", never)
    with pytest.raises(ConfigError, match=r"a rank has no memory for a single sequence: set train\.recompute to layer"):
        open_run(load(run_file, [AUTO]), SingleCommunicator())


def test_the_exact_reduction_asks_for_a_number(run_file):
    with pytest.raises(ConfigError, match=r"exact, which sums .* fixed order: set train\.micro_batch, a divisor of"):
        load(run_file, ["train.reduction=exact", AUTO])


def test_it_is_planned_and_shown(run_file, capsys):
    def printed(*arguments):
        with pytest.raises(SystemExit) as leaving:
            main([*map(str, arguments)])
        return leaving.value.code, capsys.readouterr()

    _, plan = printed("plan", run_file, *LARGE)
    assert "in 8 micro-batches of 125\n" in plan.out
    assert (
        "train.micro_batch is auto: 125 for a rank alone on this machine; the run chooses by its own hosts" in plan.out
    )
    code, shown = printed("show", run_file, "--step", 1, "--rank-of", 2, AUTO)
    assert (code, shown.err.count("\n")) == (2, 1)
    assert "train.micro_batch is auto, which the start of the run chooses: give a number for --rank-of" in shown.err
    assert printed("train", run_file, *FEW, "train.global_batch=4", AUTO)[0] == 0
    # What has been trained is known.
    code, shown = printed("show", run_file, "--step", 1, "--rank-of", 2, *FEW, "train.global_batch=4", AUTO)
    assert (code, "rank 1, micro-batch 0" in shown.out) == (0, True)
