"""Laws 1 to 3 on the real command line: the number of ranks changes nothing, and neither does a stop in between."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from launching import TRAIN

from lucid.training.store import find_model


def assert_same_curve(one, other):
    assert one.keys() == other.keys()
    np.testing.assert_allclose(list(one.values()), [other[step] for step in one], rtol=1e-4)


def keep_only_step(run_folder, copy, step):
    """Copy a run as a kill after `step` would have left it."""
    shutil.copytree(run_folder, copy)
    for checkpoint in (copy / "checkpoints").iterdir():
        if checkpoint.name != f"0001-{step:08d}":
            shutil.rmtree(checkpoint)


def last_weights(run_folder):
    return (find_model(run_folder) / "model.safetensors").read_bytes()


def metrics_but_speed(run_folder):
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    speed = {"sequences_per_second", "model_flops_per_second", "mfu", "data_wait"}
    return [{name: line[name] for name in line.keys() - speed} for line in lines]


def test_the_loss_curve_does_not_depend_on_ranks_or_micro_batches(train):
    one = train(1, "one")
    assert len(one) == 50
    assert one[50] < one[1]
    assert_same_curve(one, train(2, "two"))
    assert_same_curve(one, train(3, "three", "train.micro_batch=3"))
    assert_same_curve(one, train(4, "four", "train.micro_batch=1", "data.workers=2"))


def test_a_run_resumed_from_step_20_on_other_ranks_gives_the_same_curve(train, tmp_path):
    undisturbed = train(2, "undisturbed", "train.keep_checkpoints=9")
    for ranks in (1, 3):
        keep_only_step(tmp_path / "undisturbed", tmp_path / f"resumed{ranks}", 20)
        assert_same_curve(undisturbed, train(ranks, f"resumed{ranks}"))


def test_a_run_resumed_on_as_many_ranks_goes_on_bit_for_bit(train, tmp_path):
    undisturbed = train(2, "undisturbed", "train.keep_checkpoints=9")
    keep_only_step(tmp_path / "undisturbed", tmp_path / "resumed", 40)
    assert train(2, "resumed") == undisturbed
    assert last_weights(tmp_path / "resumed") == last_weights(tmp_path / "undisturbed")


def test_lines_over_several_steps_are_those_of_the_undisturbed_run(train, tmp_path):
    settings = ("train.log_every=7", "train.checkpoint_every=10", "train.keep_checkpoints=9")
    train(2, "undisturbed", *settings)
    keep_only_step(tmp_path / "undisturbed", tmp_path / "resumed", 10)
    train(2, "resumed", *settings)
    undisturbed, resumed = (metrics_but_speed(tmp_path / name) for name in ("undisturbed", "resumed"))
    assert [line["step"] for line in undisturbed if "loss" in line] == [7, 14, 21, 28, 35, 42, 49, 50]
    assert resumed == undisturbed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_all_ranks_at_one_step_and_the_run_goes_on(number, train, train_until, tmp_path, losses):
    undisturbed = train(2, "undisturbed")
    assert "stopped at step" in train_until(2, "stopped", 3, number=number)
    assert 3 <= max(losses(tmp_path / "stopped")) < 50
    assert train(2, "stopped") == undisturbed


def test_a_stop_between_two_lines_of_the_log_adds_none(mpiexec, run_file, tmp_path, losses):
    """Its steps count in the next line, which the resumed run writes."""
    overrides = f"run_folder={tmp_path / 'run'}", "train.log_every=100000", "train.steps=100000"
    overrides += ("train.evaluate_every=3", "train.evaluation_samples=4")
    command = [mpiexec, "-n", "2", sys.executable, *TRAIN, str(run_file), *overrides]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("held out"):
            process.send_signal(signal.SIGTERM)
            break
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert losses(tmp_path / "run") == {}


def test_settings_that_differ_between_ranks_cannot_split_the_run(run_ranks, run_file, tmp_path):
    """Ranks that see another file, as on hosts with different copies, take the first rank's settings."""
    script = (
        "import os, sys; from lucid.cli import main; "
        "os.environ['PMI_RANK'] == '0' or sys.argv.__setitem__(2, '/nowhere.yaml'); main()"
    )
    finished = run_ranks(2, "-m", "mpi4py", "-c", script, "train", str(run_file), "train.steps=6")
    assert finished.returncode == 0, finished.stdout
    assert "finished at step 6 of 6" in finished.stdout


def test_without_pairs_nothing_is_said_of_them(train, tmp_path):
    train(2, "run", "data.nsp=false", "train.steps=6", "model.type_vocab_size=1")
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert all("nsp_loss" not in line for line in lines)
    assert lines[-1]["held_out_nsp_loss"] is None


def test_evaluation_does_not_depend_on_ranks(train, run_ranks, tmp_path):
    train(2, "run")
    sentences = set()
    for ranks in (1, 2, 3):
        finished = run_ranks(ranks, "-m", "mpi4py", "-m", "lucid", "evaluate", str(tmp_path / "run"))
        assert finished.returncode == 0, finished.stdout
        # The launcher may put a rank's number before the end of the line too.
        sentences |= set(re.findall(r"held out: .* samples\)", finished.stdout))
    assert len(sentences) == 1


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("train.global_batch=7", "train.global_batch is 7, which 2 ranks cannot share evenly"),
        ("train.globalbatch=8", "the key train.globalbatch is unknown; did you mean train.global_batch?"),
        ("data.path=/nowhere", "/nowhere does not exist"),
        ("model.vocab_size=100", "model.vocab_size is 100, but the tokenizer"),
        ("initial_model=/nowhere", "/nowhere/config.json is not there"),
        ("run_folder=/proc/nowhere", "run_folder: /proc/nowhere could not be made"),
    ],
)
def test_a_mistake_is_one_sentence_from_one_rank(override, fragment, run_ranks, run_file):
    finished = run_ranks(2, *TRAIN, str(run_file), override)
    assert finished.returncode == 2
    assert fragment in finished.stdout
    assert "Traceback" not in finished.stdout
    assert "Abort" not in finished.stdout
    assert finished.stdout.count("lucid: ") == 1


def test_a_gradient_that_is_not_finite_is_skipped_by_all_and_ends_the_run_in_the_end(run_ranks, run_file, tmp_path):
    overrides = ("optimizer.learning_rate=1e30", "optimizer.warmup_steps=0", "train.max_skipped_steps=3")
    finished = run_ranks(2, *TRAIN, str(run_file), *overrides)
    assert finished.returncode == 1, finished.stdout
    assert "the gradient was not finite 4 times in a row" in finished.stdout
    assert "Traceback" not in finished.stdout
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped_steps"] for line in lines][-3:] == [1, 2, 3]
