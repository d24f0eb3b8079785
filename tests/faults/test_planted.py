"""Faults planted into the numbers of a real run: a flipped bit in one rank, gradients that are not finite."""

import json
import re

import pytest

from lucid.errors import TrainingError

# `lucid train`, with a fault before or after the computation of a step's gradients and their sums over ranks.
PROGRAM = """
import numpy as np
from lucid.cli import main
from lucid.training.micro_batches import MicroBatches
from lucid.training.trainer import Trainer

take_step, gradients_of = Trainer._step, MicroBatches.gradients

def step(self, *arguments):
    global run
    run = self.run
    take_step(self, *arguments)

def gradients(self, batch, number, mlm_weight, nsp_weight):
    {before}
    sums = gradients_of(self, batch, number, mlm_weight, nsp_weight)
    {after}
    return sums

Trainer._step, MicroBatches.gradients = step, gradients
main()
"""


@pytest.fixture
def train_with(run_ranks, run_file):
    """A function that trains on three ranks with a fault planted where a condition holds."""

    def run(fault, condition, *overrides):
        place = "before" if "weight =" in fault else "after"
        program = PROGRAM.format(**{"before": "", "after": "", place: f"if {condition}: {fault}"})
        return run_ranks(3, "-m", "mpi4py", "-c", program, "train", str(run_file), *overrides)

    return run


FLIP = "run.ddp.flat.values.view(np.uint8)[4001] ^= 1"
# After the reduction all ranks see the fault, as if one rank's gradient had spoiled the sum.
SPOIL = "run.ddp.flat.views(run.ddp.flat.gradients)['cls.predictions.bias'][3] = np.inf"


def skipped_steps(run_folder):
    """The number of skipped steps up to each step, from the log."""
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["skipped_steps"] for line in lines if "skipped_steps" in line}


def test_a_flipped_bit_in_one_ranks_weights_ends_the_run_and_names_the_rank(train_with, tmp_path):
    finished = train_with(FLIP, "run.step == 24 and run.communicator.rank == 1", "train.check_replicas_every=5")
    assert finished.returncode == TrainingError.exit_code, finished.stdout
    assert re.search(r"after step 25: rank 1 holds other weights than the rest, in [\w.]+", finished.stdout)
    assert "Traceback" not in finished.stdout
    assert [path.name[-8:] for path in (tmp_path / "run/checkpoints").glob("0*")] == ["00000020"]


def test_replicas_that_differ_are_never_saved(train_with, tmp_path):
    finished = train_with(FLIP, "run.step == 10 and run.communicator.rank == 2", "train.check_replicas_every=1000")
    assert finished.returncode == TrainingError.exit_code, finished.stdout
    assert "after step 20: rank 2 holds other weights than the rest" in finished.stdout
    assert not list((tmp_path / "run/checkpoints").glob("0*"))


def test_a_gradient_that_is_not_finite_is_skipped_by_all_and_counted(train_with, tmp_path):
    finished = train_with(SPOIL, "run.step in (3, 4, 9)", "train.steps=12")
    assert finished.returncode == 0, finished.stdout
    skipped = skipped_steps(tmp_path / "run")
    assert [skipped[step] for step in (3, 4, 5, 9, 10, 12)] == [0, 1, 2, 2, 3, 3]


def test_a_skipped_step_does_not_change_the_weights(train_with, tmp_path, losses):
    """All ranks skipped together: otherwise the comparison of replicas, after each step here, would end the run."""
    finished = train_with(SPOIL, "run.step % 2", "train.steps=12", "train.check_replicas_every=1")
    assert finished.returncode == 0, finished.stdout
    assert len(losses(tmp_path / "run")) == 12


def test_too_many_skipped_steps_in_a_row_end_the_run_and_say_where(train_with):
    finished = train_with(SPOIL, "run.step >= 6", "train.max_skipped_steps=3")
    assert finished.returncode == TrainingError.exit_code, finished.stdout
    assert "step 9: the gradient was not finite 4 times in a row (last in cls.predictions.bias)" in finished.stdout
    assert "Traceback" not in finished.stdout


def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_all(train_with, tmp_path):
    condition = "run.step in (3, 4) and run.communicator.rank == 1"
    finished = train_with("mlm_weight = float('nan')", condition, "train.steps=8", "train.check_replicas_every=1")
    assert finished.returncode == 0, finished.stdout
    assert skipped_steps(tmp_path / "run")[8] == 2
