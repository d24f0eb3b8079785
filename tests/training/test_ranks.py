"""Invariants 1 to 3 on the command line: neither the number of ranks nor a stop in between changes a run."""

import json
import shutil
import signal

import numpy as np
import pytest
from launching import TRAIN
from rank_pool.commands import command

from lucid.distributed import announced
from lucid.training.checkpoints.store import find_model


def assert_same_curve(one, other):
    assert one.keys() == other.keys()
    np.testing.assert_allclose(list(one.values()), [other[step] for step in one], rtol=1e-4)


def cut_back(run_folder, copy, step):
    """Copy a run as a kill after `step` would have left it."""
    shutil.copytree(run_folder, copy)
    for checkpoint in (copy / "checkpoints").iterdir():
        if checkpoint.name != f"0001-{step:08d}":
            shutil.rmtree(checkpoint)


def last_weights(run_folder):
    return (find_model(run_folder) / "model.safetensors").read_bytes()


def metrics_but_speed(run_folder):
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    of_this_attempt = {"time", "attempt", "data_wait", "slowest_rank", "slowest_rank_share"}
    of_this_attempt |= {name for name in lines[0] if name.endswith("_per_second") or name.startswith("communication_")}
    return [{name: line[name] for name in line.keys() - of_this_attempt} for line in lines]


def test_the_loss_curve_does_not_depend_on_ranks_or_micro_batches(undisturbed, losses):
    one = losses(undisturbed(1))
    assert len(one) == 50
    assert one[50] < one[1]
    assert_same_curve(one, losses(undisturbed(2)))
    assert_same_curve(one, losses(undisturbed(3, "train.micro_batch=3")))
    assert_same_curve(one, losses(undisturbed(4, "train.micro_batch=1", "data.workers=2")))


def test_a_run_under_mpiexec_gives_the_losses_of_the_rank_pool(run_ranks, run_file, tmp_path, undisturbed, losses):
    finished = run_ranks(2, *TRAIN, str(run_file))
    assert finished.returncode == 0, finished.stdout
    assert "finished at step 50 of 50" in finished.stdout
    assert losses(tmp_path / "run") == losses(undisturbed(2))
    assert last_weights(tmp_path / "run") == last_weights(undisturbed(2))


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_run_resumed_from_step_20_on_other_ranks_gives_the_same_curve(ranks, train, undisturbed, losses, tmp_path):
    cut_back(undisturbed(2), tmp_path / "resumed", 20)
    assert_same_curve(losses(undisturbed(2)), train(ranks, "resumed"))


def test_a_run_resumed_on_as_many_ranks_continues_bit_for_bit(train, undisturbed, losses, tmp_path):
    cut_back(undisturbed(2), tmp_path / "resumed", 40)
    assert train(2, "resumed") == losses(undisturbed(2))
    assert last_weights(tmp_path / "resumed") == last_weights(undisturbed(2))


def test_lines_over_several_steps_are_those_of_the_undisturbed_run(train, undisturbed, tmp_path):
    settings = ("train.steps=23", "train.log_every=7", "train.checkpoint_every=10")
    whole = undisturbed(2, *settings)
    cut_back(whole, tmp_path / "resumed", 10)
    train(2, "resumed", *settings)
    lines = metrics_but_speed(whole)
    assert [line["step"] for line in lines if "loss" in line] == [7, 14, 21, 23]
    assert metrics_but_speed(tmp_path / "resumed") == lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_all_ranks_at_one_step_and_the_run_goes_on(
    number, train_until_signal, train, undisturbed, tmp_path, losses
):
    assert "stopped at step" in train_until_signal(2, "run", 3, number)
    assert 3 <= max(losses(tmp_path / "run")) < 50
    assert train(2, "run") == losses(undisturbed(2))


def test_a_stop_between_two_lines_of_the_log_adds_no_line(train_until, tmp_path, losses):
    """Its steps count in the next line, which the resumed run writes."""
    settings = ("train.log_every=100000", "train.steps=100000", "train.evaluate_every=3", "train.evaluation_samples=4")
    train_until(2, "run", 4, *settings)
    assert losses(tmp_path / "run") == {}


def train_from_a_file_of_the_first_rank(config):
    return command(["train", config if announced().rank == 0 else "/nowhere.yaml", "train.steps=6"])


def test_settings_that_differ_between_ranks_cannot_split_the_run(rank_pool, run_file):
    """Ranks that see another file, as on hosts with different copies, take the first rank's settings."""
    results = rank_pool.run(2, train_from_a_file_of_the_first_rank, str(run_file))
    assert [result.value for result in results] == [0, 0]
    assert "finished at step 6 of 6" in results[0].output


def test_without_pairs_the_log_has_no_nsp_metrics(train, tmp_path):
    train(2, "run", "data.nsp=false", "train.steps=6", "model.type_vocab_size=1")
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert all("nsp_loss" not in line for line in lines)
    assert lines[-1]["held_out_nsp_loss"] is None


def test_evaluation_does_not_depend_on_ranks(undisturbed, on_ranks):
    sentences = set()
    for ranks in (1, 2, 3):
        finished = on_ranks(ranks, "evaluate", undisturbed(2))
        assert finished.returncode == 0, finished.stdout
        assert len(finished.stdout.splitlines()) == 2  # the checkpoint, and the losses
        sentences.add(finished.stdout)
    assert len(sentences) == 1


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("train.global_batch=1", "train.global_batch is 1, but 2 ranks take at least one of its sequences each"),
        ("train.globalbatch=8", "the key train.globalbatch is unknown; did you mean train.global_batch?"),
        ("data.path=/nowhere", "/nowhere does not exist"),
        ("train.global_batch=2147483646", " would take at least 550 GB of memory ("),
        ("model.vocab_size=100", "model.vocab_size is 100, but the tokenizer"),
        ("initial_model=/nowhere", "/nowhere/config.json does not exist"),
        ("run_folder=/proc/nowhere", "run_folder is /proc/nowhere, but /proc cannot be written ("),
    ],
)
def test_a_mistake_is_one_sentence_from_one_rank(override, fragment, on_ranks, run_file):
    assert_refused(on_ranks(2, "train", run_file, override), fragment)


def test_a_mistake_is_one_sentence_from_mpiexec(run_ranks, run_file):
    finished = run_ranks(2, *TRAIN, str(run_file), "train.global_batch=1")
    assert_refused(finished, "train.global_batch is 1, but 2 ranks take at least one of its sequences each")


@pytest.mark.parametrize("mistake", ["--no-such-option", "no-such-file.yaml"])
def test_a_mistake_on_the_command_line_is_one_sentence_from_one_rank(mistake, on_ranks):
    assert_refused(on_ranks(2, "train", mistake), mistake)


def assert_refused(finished, fragment):
    assert finished.returncode == 2
    assert fragment in finished.stdout
    assert "Traceback" not in finished.stdout
    assert "Abort" not in finished.stdout
    assert finished.stdout.count("lucid: ") == 1


def test_a_gradient_that_is_not_finite_is_skipped_by_all_and_ends_the_run_in_the_end(on_ranks, run_file, tmp_path):
    overrides = ("optimizer.learning_rate=1e30", "optimizer.warmup_steps=0", "train.max_skipped_steps=3")
    finished = on_ranks(2, "train", run_file, *overrides)
    assert finished.returncode == 1, finished.stdout
    assert "the gradient was not finite 4 times in a row" in finished.stdout
    assert "Traceback" not in finished.stdout
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped_steps"] for line in lines][-3:] == [1, 2, 3]
