"""The log says who waits for whom, how far the run is, and in which attempt."""

import json
from contextlib import suppress
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import yaml

from lucid.distributed.communicators import status_writer
from lucid.distributed.communicators.status_writer import StatusWriter
from lucid.training.log import rank_times
from lucid.training.log.rank_times import RankClock, Waits
from lucid.training.reports import waits_for_slowest

HOSTS = ["node1", "node1", "node2", "node2"]


class Clock:
    """A clock that only `passes` moves."""

    def __init__(self):
        self.now = 100.0

    def passes(self, seconds):
        self.now += seconds

    def read(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(status_writer, "time", SimpleNamespace(monotonic=clock.read))
    monkeypatch.setattr(rank_times, "time", SimpleNamespace(perf_counter=clock.read))
    return clock


def test_the_time_in_collectives_counts_and_the_time_in_which_the_gpu_computes_does_not(clock):
    status = StatusWriter(0, 2)
    with status.waiting("all_reduce", 8):
        clock.passes(2)
    clock.passes(10)
    with status.waiting("wait for the GPU", 0, for_ranks=False):
        clock.passes(3)
    with suppress(ZeroDivisionError), status.waiting("barrier", 0):
        clock.passes(1)
        raise ZeroDivisionError
    assert status.seconds_waited == 3


def test_a_pause_counts_neither_as_time_nor_as_waiting(clock):
    communicator = SimpleNamespace(seconds_waited=5.0)
    ranks_clock = RankClock(communicator)
    clock.passes(4)
    communicator.seconds_waited += 1
    with ranks_clock.paused():
        clock.passes(20)
        communicator.seconds_waited += 10
    clock.passes(4)
    communicator.seconds_waited += 2
    assert ranks_clock.restart() == (8, 3)
    assert ranks_clock.restart() == (0, 0)


def test_the_rank_that_waits_least_is_the_one_that_the_others_wait_for():
    waits = Waits.of(np.full(4, 10.0), np.array([4.0, 5.0, 1.0, 6.0]))
    assert waits == pytest.approx((0.4, 0.6, 2, 0.75))


def test_a_rank_alone_waits_for_nobody():
    assert Waits.of(np.array([10.0]), np.array([0.0])).metrics == {
        "communication_wait": 0.0,
        "communication_wait_max": 0.0,
    }


def test_ranks_that_have_not_waited_at_all_have_lost_nothing():
    assert Waits.of(np.full(2, 10.0), np.zeros(2)).share == 0.0


@pytest.mark.parametrize(
    ("waited", "sentence"),
    [
        ([4.0, 5.0, 1.0, 6.0], "waits 30% for rank 2 (node2)"),
        ([4.0, 4.0, 4.0, 4.0], ""),  # that is what communication takes
        ([0.5, 0.5, 0.5, 0.0], ""),  # too little to mention
    ],
)
def test_waiting_that_costs_much_is_reported_with_the_rank_and_its_host(waited, sentence):
    assert waits_for_slowest(Waits.of(np.full(4, 10.0), np.array(waited)).metrics, HOSTS) == sentence
    assert waits_for_slowest(Waits.of(np.ones(1), np.zeros(1)).metrics, HOSTS) == ""


def lines_of(run_folder):
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def with_made_up_waits(waits):
    """Let each rank find between two lines that 10 s have passed, and that it has waited so many of them."""
    return mock.patch.object(RankClock, "restart", lambda clock: (10.0, waits[clock._communicator.rank]))


def test_the_rank_that_waits_least_is_named_with_what_the_others_lose(on_ranks, run_file, tmp_path):
    settings = ("train.steps=6", "train.log_every=3")
    finished = on_ranks(3, "train", run_file, *settings, within=partial(with_made_up_waits, [4.0, 1.0, 7.0]))
    assert finished.returncode == 0, finished.stdout
    lines = [line for line in lines_of(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in lines] == [3, 6]
    for line in lines:
        found = [line[f"communication_wait{kind}"] for kind in ("", "_max")] + [line["slowest_rank_share"]]
        assert found == pytest.approx([0.4, 0.7, 0.75])
        assert line["slowest_rank"] == 1
    assert finished.stdout.count("waits 30% for rank 1 (") == 2


@pytest.mark.parametrize("settings", [(), ("distributed.backend=mpi", "optimizer.sharded=true")])
def test_ranks_wait_for_each_other_in_each_window(settings, on_ranks, run_file, tmp_path):
    finished = on_ranks(2, "train", run_file, "train.steps=6", "train.log_every=3", *settings)
    assert finished.returncode == 0, finished.stdout
    for line in lines_of(tmp_path / "run")[:2]:
        assert 0 < line["communication_wait"] <= line["communication_wait_max"] < 1


def test_every_line_says_how_far_the_run_is(undisturbed):
    run_folder = undisturbed(2)
    lines = lines_of(run_folder)
    batch = yaml.safe_load((run_folder.parent / "run.yaml").read_text())["train"]["global_batch"]
    assert [line["samples"] for line in lines] == [batch * line["step"] for line in lines]
    assert {line["attempt"] for line in lines} == {1}
    for before, after in pairwise(lines):
        assert before["time"] <= after["time"]
        assert before["epoch"] / before["samples"] == pytest.approx(after["epoch"] / after["samples"])
    training = [line for line in lines if "loss" in line]
    assert all(before["tokens"] < after["tokens"] for before, after in pairwise(training))
    assert all(line["tokens_per_second"] > 0 for line in training)


def test_the_tokens_of_a_run_do_not_depend_on_the_number_of_ranks(undisturbed):
    one, two = ([line["tokens"] for line in lines_of(undisturbed(ranks)) if "loss" in line] for ranks in (1, 2))
    assert one == two
