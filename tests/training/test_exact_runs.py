"""Invariant 1 bit for bit: the exact reduction gives the same weights on any number of ranks that it allows.

And replicas that drift apart end the run.
"""

import hashlib
import re

import pytest
from launching import TRAIN

from lucid.errors import ConfigError
from lucid.kernels import products
from lucid.training.checkpoints.store import find_model

EXACT = ("train.reduction=exact", "train.global_batch=16", "train.micro_batch=1", "train.steps=20")


def digest(run_folder):
    return hashlib.sha256((find_model(run_folder) / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def weights(undisturbed, losses):
    """A function that trains on some ranks and returns the SHA-256 of the weights, and the losses."""

    def run(ranks, *overrides):
        folder = undisturbed(ranks, *EXACT, *overrides)
        return digest(folder), losses(folder)

    return run


def test_one_two_and_four_ranks_give_the_same_weights_and_losses(weights):
    one, losses = weights(1)
    assert losses[20] < losses[1]
    for ranks in (2, 4):
        assert weights(ranks) == (one, losses)


@pytest.mark.long
def test_eight_ranks_give_the_weights_and_losses_of_one(weights, run_ranks, run_file, tmp_path, losses):
    finished = run_ranks(8, *TRAIN, str(run_file), *EXACT, seconds=120)
    assert finished.returncode == 0, finished.stdout
    assert (digest(tmp_path / "run"), losses(tmp_path / "run")) == weights(1)


def test_a_number_of_micro_batches_that_is_no_power_of_two_works(weights):
    settings = ("train.global_batch=12", "train.micro_batch=2", "optimizer.name=lamb")
    assert weights(1, *settings) == weights(2, *settings)


def test_in_bfloat16_too_two_ranks_give_the_weights_of_one(weights, monkeypatch):
    monkeypatch.delenv("LUCID_KERNELS", raising=False)
    try:
        products.set_precision("bfloat16")
    except ConfigError as error:
        pytest.skip(str(error))  # oneDNN is not installed, or this processor is not one of those it has products for
    finally:
        products.set_precision("float32")
    assert weights(1, "train.precision=bfloat16") == weights(2, "train.precision=bfloat16")


def test_recomputing_layers_changes_no_bit(weights):
    assert weights(1) == weights(2, "train.recompute=layer")


def test_a_run_stopped_and_resumed_on_ever_fewer_ranks_gives_the_same_weights(
    weights, train, train_until, losses, tmp_path
):
    for ranks, step in ((4, 5), (2, 11)):
        train_until(ranks, "stopped", step, *EXACT)
    train(1, "stopped", *EXACT)
    assert (digest(tmp_path / "stopped"), losses(tmp_path / "stopped")) == weights(1)


@pytest.mark.parametrize("workers", [0, 3])
def test_the_number_of_data_workers_changes_no_bit(weights, workers):
    assert weights(2, f"data.workers={workers}") == weights(2)


def test_a_number_of_ranks_that_does_not_fit_the_tree_is_refused(on_ranks, run_file):
    finished = on_ranks(3, "train", run_file, *EXACT, "train.global_batch=12")
    assert finished.returncode == 2, finished.stdout
    assert re.search(r"12 micro-batches .* can be summed on 1 or 2 or 4 ranks, not on 3", finished.stdout)


def test_the_start_reports_the_cost_of_the_exact_reduction(on_ranks, run_file):
    finished = on_ranks(2, "train", run_file, *EXACT, "train.steps=6")
    assert "exact reduction: 8 micro-batches a rank in up to 4 gradient buffers" in finished.stdout
    assert "1 thread a rank" in finished.stdout


def test_resuming_in_an_environment_that_may_change_bits_is_reported(on_ranks, run_file, train_until, tmp_path):
    train_until(2, "run", 5, *EXACT)
    again = (*EXACT, f"run_folder={tmp_path / 'run'}")
    finished = on_ranks(1, "train", run_file, *again, "train.threads_per_rank=2", "train.micro_batch=2")
    assert finished.returncode == 0, finished.stdout
    assert (
        "settings of train changed: micro_batch 2 instead of 1, threads_per_rank 2 instead of null" in finished.stdout
    )
    assert "the bits of the results may differ from here on, by threads_per_rank 2 instead of 1" in finished.stdout
