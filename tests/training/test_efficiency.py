"""The limit that MFU is a share of: which ranks count for it, and when it is measured."""

import pytest

from lucid.distributed import RankLocation, StopRequest
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.training import trainer
from lucid.training.config import load
from lucid.training.efficiency import has_cores
from lucid.training.setup import open_run

SHARED, OWN = [(0, 1, 2, 3)] * 4, [(0,), (1,), (2,), (3,)]


def locations(host, masks, threads):
    return [RankLocation(host, mask, len(mask), threads, "cpu") for mask in masks]


@pytest.mark.parametrize(
    ("masks", "threads", "count"),
    [
        (SHARED, 1, 4),
        (OWN, 1, 4),
        (SHARED, 2, 2),
        (SHARED, 3, 1),
        (SHARED, 8, 1),
        (SHARED * 2, 1, 4),
        (OWN, 2, 2),
    ],
)
def test_as_many_ranks_of_a_host_count_as_have_cores(masks, threads, count):
    ranks = locations("a", masks, threads) + locations("b", masks, threads)
    counted = [rank for rank in range(len(ranks)) if has_cores(ranks, rank)]
    assert counted == [*range(count), *range(len(masks), len(masks) + count)]


def test_it_is_measured_once_and_after_the_first_step(run_file, monkeypatch):
    steps = []
    monkeypatch.setattr(trainer, "product_limit", lambda run: steps.append(run.step) or 1e9)
    config = load(run_file, ["train.steps=7", "train.log_every=2"])
    with StopRequest() as stop:
        trainer.Trainer(open_run(config, SingleCommunicator())).train(stop)
    assert steps == [2]
