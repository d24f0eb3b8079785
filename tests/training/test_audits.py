"""Audits: a rank that computes wrong products is found and named; a run whose ranks compute rightly is not changed."""

import re
from contextlib import contextmanager
from functools import partial
from itertools import count
from unittest import mock

import numpy as np
import pytest

from lucid import kernels
from lucid.distributed.communicators.announcement import announced
from lucid.errors import TrainingError

AUDITS = ("train.audit_every=3", "train.steps=8", "train.checkpoint_every=4")


@contextmanager
def faulty(rank, only=None):
    """Within the block each product of rank `rank` has one wrong bit, or only the one of call number `only`."""
    if announced().rank != rank:
        yield
        return
    implementation, calls = kernels.of(np.zeros(0, np.float32)), count(1)
    right = implementation.linear

    def linear(*arguments, **options):
        result = right(*arguments, **options)
        if only in (None, next(calls)):
            result.reshape(-1)[:1].view(np.uint32)[...] ^= 1 << 12
        return result

    with mock.patch.object(implementation, "linear", linear):
        yield


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("train.reduction=exact", "train.micro_batch=1"),
        pytest.param(("optimizer.sharded=true", "train.micro_batch=2"), marks=pytest.mark.long),
        pytest.param(("train.precision=bfloat16", "train.recompute=layer"), marks=pytest.mark.long),
        pytest.param(("data.packing=true", "train.micro_batch=4"), marks=pytest.mark.long),
    ],
    ids=lambda overrides: " ".join(overrides) or "defaults",
)
def test_audits_change_no_bit_of_a_run(train, tmp_path, overrides):
    losses = [
        train(2, f"run{number}", *overrides, *AUDITS, *more)
        for number, more in enumerate([(), ("train.audit_every=null",)])
    ]
    assert losses[0] == losses[1]
    weights = [
        (tmp_path / f"run{number}/checkpoints/0001-00000008/model.safetensors").read_bytes() for number in (0, 1)
    ]
    assert weights[0] == weights[1]


def test_a_wrong_product_on_one_of_two_ranks_names_both(on_ranks, run_file):
    finished = on_ranks(2, "train", run_file, *AUDITS, within=partial(faulty, 1))
    assert finished.returncode == TrainingError.exit_code, finished.stdout
    assert re.search(r"step 1: rank \d on \S+ and rank \d on \S+ compute different gradients", finished.stdout)
    assert "no third rank can decide, in " in finished.stdout
    assert "Traceback" not in finished.stdout


@pytest.mark.parametrize("rank", [0, pytest.param(2, marks=pytest.mark.long)])
def test_a_wrong_product_on_one_of_three_ranks_names_it(on_ranks, run_file, tmp_path, rank):
    finished = on_ranks(3, "train", run_file, *AUDITS, within=partial(faulty, rank))
    assert finished.returncode == TrainingError.exit_code, finished.stdout
    assert re.search(
        rf"step 1: rank {rank} on \S+ computes different gradients from rank \d on \S+ and rank \d", finished.stdout
    )
    assert not list((tmp_path / "run/checkpoints").glob("0*"))


def test_a_single_wrong_product_in_an_audit_names_its_rank(on_ranks, run_file):
    finished = on_ranks(2, "train", run_file, *AUDITS, within=partial(faulty, 1, only=2))
    assert finished.returncode == TrainingError.exit_code, finished.stdout
    assert re.search(r"step 1: rank 1 on \S+ computed different gradients from the same numbers when", finished.stdout)


@pytest.mark.long
def test_without_audits_a_wrong_product_goes_unseen(on_ranks, run_file):
    finished = on_ranks(2, "train", run_file, *AUDITS, "train.audit_every=null", within=partial(faulty, 1))
    assert finished.returncode == 0, finished.stdout


@contextmanager
def other_threads():
    """The last of two ranks computes with two threads."""
    kernels.threads.limit(1 + announced().rank)
    yield


def test_ranks_that_compute_in_different_ways_are_refused(on_ranks, run_file):
    finished = on_ranks(2, "train", run_file, *AUDITS, within=other_threads)
    assert finished.returncode == 2, finished.stdout
    assert re.search(
        r"train.audit_every compares bits, but rank 1 on \S+ computes with threads_per_rank", finished.stdout
    )


def test_one_rank_says_that_nobody_audits_it(on_ranks, run_file):
    finished = on_ranks(1, "train", run_file, *AUDITS)
    assert finished.returncode == 0, finished.stdout
    assert "train.audit_every is set, but a single rank has no other one that could audit it" in finished.stdout
