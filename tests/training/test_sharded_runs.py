"""Runs with a sharded optimizer, on the real command line, give the weights, moments and losses of unsharded runs."""

import itertools
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from unittest import mock

import pytest
from hosts import LINK
from launching import FEW_CORES, TRAIN

from lucid.distributed.parallel import sharding
from lucid.errors import TrainingError
from lucid.training.checkpoints.store import find_model

SHARDED = "optimizer.sharded=true"
EXACT = ("train.reduction=exact", "train.global_batch=16", "train.micro_batch=2", "train.steps=20")
# Parameters of several blocks each.
LARGER = ("model.hidden_size=64", "model.intermediate_size=300", "model.vocab_size=700")


def results_in(run_folder):
    """Return the bytes of the newest weights and moments."""
    folder = find_model(run_folder)
    return [(folder / f"{part}.safetensors").read_bytes() for part in ("model", "optimizer")]


@pytest.fixture
def results(undisturbed, losses):
    """A function that trains on some ranks and returns the losses, and the bytes of weights and moments."""

    def run(ranks, *overrides):
        folder = undisturbed(ranks, *overrides)
        return losses(folder), results_in(folder)

    return run


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_two_ranks_give_the_bits_of_two_unsharded_ranks(results, optimizer):
    settings = ("train.steps=12", "train.checkpoint_every=5", "train.evaluate_every=6", f"optimizer.name={optimizer}")
    settings += (*LARGER, "distributed.bucket_megabytes=0.2", "train.check_replicas_every=4")
    assert results(2, *settings, SHARDED) == results(2, *settings)


@pytest.mark.parametrize("backend", ["mpi", "shared_memory"], ids=["by messages", "in shared memory"])
def test_under_the_exact_reduction_four_ranks_give_the_bits_of_one(results, backend):
    settings = (*EXACT, *LARGER, "optimizer.name=lamb")
    assert results(4, *settings, SHARDED, f"distributed.backend={backend}") == results(1, *settings)


def test_a_run_resumed_on_changing_numbers_of_ranks_sharded_or_not_continues_bit_for_bit(
    results, train, train_until, tmp_path
):
    settings = (*EXACT, "train.checkpoint_every=4")
    for ranks, step, is_sharded in ((4, 3, True), (2, 7, False), (1, 11, True)):
        train_until(ranks, "stopped", step, *settings, f"optimizer.sharded={str(is_sharded).lower()}")
    losses = train(4, "stopped", *settings, SHARDED)
    assert (losses, results_in(tmp_path / "stopped")) == results(2, *settings)


@contextmanager
def a_bit_flipped(own_shard):
    """In the fifth update a bit flips in the weights of rank 1: in its own shard, or in that of another rank."""
    publish, steps = sharding.Sharded.publish, itertools.count(1)

    def flip_after(self):
        publish(self)
        if self._communicator.rank == 1 and next(steps) == 5:
            start = self.slices[0].elements.start
            self.flat.values.view("uint8")[4 * start if own_shard else 0] ^= 1

    with mock.patch.object(sharding.Sharded, "publish", flip_after):
        yield


@pytest.mark.parametrize("own_shard", [False, True])
def test_a_copy_that_drifts_apart_is_found(on_ranks, run_file, own_shard):
    """Over MPI each rank has a copy of all weights."""
    settings = (SHARDED, "distributed.backend=mpi", "train.check_replicas_every=5")
    finished = on_ranks(3, "train", run_file, *settings, within=partial(a_bit_flipped, own_shard))
    assert finished.returncode == TrainingError.exit_code, finished.stdout
    assert re.search(r"after step 5: rank 1 holds other weights than the rest, in [\w.]+", finished.stdout)


def test_gradients_that_are_not_finite_end_the_run_and_name_the_parameters(on_ranks, run_file, tmp_path):
    overrides = ("optimizer.learning_rate=1e30", "optimizer.warmup_steps=0", "train.max_skipped_steps=3")
    endings = []
    for choice in ("true", "false"):
        folder = f"run_folder={tmp_path / choice}"
        finished = on_ranks(3, "train", run_file, *overrides, folder, f"optimizer.sharded={choice}")
        assert finished.returncode == TrainingError.exit_code, finished.stdout
        endings.append(re.search(r"the gradient was not finite 4 times in a row \(.*\)", finished.stdout)[0])
    assert endings[0] == endings[1]


@contextmanager
def update_failing(fail):
    """Rank 1 calls `fail` during the fifth update, while the others wait for its end."""
    publish, steps = sharding.Sharded.publish, itertools.count(1)

    def failing(self):
        if self._communicator.rank == 1 and next(steps) == 5:
            fail()
        publish(self)

    with mock.patch.object(sharding.Sharded, "publish", failing):
        yield


def rank_killed():
    return update_failing(lambda: os.kill(os.getpid(), signal.SIGKILL))


def rank_raising():
    def fail():
        raise RuntimeError("on purpose")

    return update_failing(fail)


def rank_hanging():
    return update_failing(signal.pause)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [(rank_killed, ""), (rank_raising, "on purpose"), (rank_hanging, "rank 1")],
    ids=["killed", "failed", "hung"],
)
def test_a_rank_that_fails_during_an_update_ends_all(run_within, run_file, fault, expected):
    finished = run_within(3, fault, "train", str(run_file), SHARDED, "train.watchdog_seconds=4")
    assert finished.returncode != 0, finished.stdout
    assert expected in finished.stdout


@pytest.mark.parametrize("on_each", [1, 2])
def test_ranks_on_two_hosts_give_the_bits_of_an_unsharded_run(hosts, mpiexec, run_file, tmp_path, losses, on_each):
    """The order of the sum of two hosts does not matter."""
    settings = (*LARGER, "train.steps=12", "train.checkpoint_every=5", "distributed.bucket_megabytes=0.2")
    for name, overrides in (("whole", ()), ("sharded", (SHARDED,))):
        finished = subprocess.run(
            [
                *hosts.mpiexec(mpiexec, on_each),
                *(sys.executable, *TRAIN, str(run_file), f"run_folder={tmp_path / name}", *settings, *overrides),
            ],
            env=os.environ | FEW_CORES | {"UCX_NET_DEVICES": LINK},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
    assert losses(tmp_path / "sharded") == losses(tmp_path / "whole")
