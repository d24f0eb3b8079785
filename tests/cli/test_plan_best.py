"""`lucid plan --best`: which ways to start a run it compares, and which commands it prints."""

import re
import shlex
from dataclasses import replace

import numpy as np
import pytest

from lucid.analysis.prediction.link_model import GradientPart, Link
from lucid.analysis.prediction.step_model import Measured, predict
from lucid.cli import main
from lucid.cli.plan.best import Way, best_of, divisions, told_apart, variants
from lucid.launch.limits import available_cores
from lucid.training.config import load
from lucid.training.estimates import memory

PLENTY = 10**12
MEASURED = Measured(
    nodes=1, ranks_per_node=2, threads=1, cores=2, seconds_per_flop=1e-11, micro_batch_seconds=0.02,
    micro_batch_error=1e-4,
    update_seconds=0.03, add_seconds=0.01, node_sum_seconds=0.01, crowding=1.0, low=0.9, high=1.2, jitter=0.0,
    recompute="none", parts=(GradientPart(0, 2**20, 1.0),),
)  # fmt: skip


def ways(config, nodes=4, measured=MEASURED):
    for variant, changes in variants(config, 2 * nodes):
        step = predict(variant, measured, Link(1e8, 0.0), nodes, 2, np.full(8, 1e9))
        yield Way(variant, changes, measured, step)


def test_cores_are_divided_in_a_few_ways_that_the_batch_allows(run_file):
    config = load(run_file, ["train.global_batch=512"])
    assert divisions(config, 4, 1, PLENTY) == [4, 2, 1]
    assert divisions(config, 64, 1, PLENTY) == [64, 16, 4, 1]
    assert divisions(load(run_file, ["train.global_batch=8"]), 64, 2, PLENTY) == [4, 2, 1]
    exact = load(run_file, ["train.global_batch=8", "train.micro_batch=1", "train.reduction=exact"])
    assert divisions(exact, 4, 2, PLENTY) == [4]
    assert divisions(config, 4, 1, memory(config, 1).of_rank // 2) == []


@pytest.mark.parametrize(
    "settings", [(), ("train.micro_batch=16", "train.balance=speed"), ("train.micro_batch=auto", "train.balance=speed")]
)
@pytest.mark.parametrize("size", [4, 64])
def test_ways_differ_from_the_file_by_the_overrides_that_they_name(run_file, settings, size):
    given = ["train.global_batch=64", *settings]
    config, found = load(run_file, given), list(variants(load(run_file, given), size))
    assert (found[0] == (config, ())) == ("train.micro_batch=auto" not in given)
    for variant, overrides in found:
        assert load(run_file, [*given, *overrides]) == variant
    assert len({overrides for _, overrides in found}) == len(found)


def test_the_exact_reduction_keeps_its_micro_batch_and_no_way_rounds_between_nodes(run_file):
    exact = load(run_file, ["train.global_batch=8", "train.micro_batch=1", "train.reduction=exact"])
    assert {variant.train.micro_batch for variant, _ in variants(exact, 4)} == {1}
    assert {variant.distributed.wire_dtype for variant, _ in variants(exact, 4)} == {"float32"}


def test_equally_fast_ways_are_listed_once_and_recomputation_only_costs(run_file):
    found = best_of(list(ways(load(run_file, ["train.global_batch=64"]))))
    assert len({way.kind for way in found}) == len(found)
    assert [way.order for way in found] == sorted(way.order for way in found)
    assert found[0].config.train.recompute == "none"
    assert found[0].config.optimizer.sharded  # divides the update, over a link that is fast enough
    recomputing = [way for way in found if way.config.train.recompute == "layer"]
    without = {(way.kind[:3]): way for way in found if way.config.train.recompute == "none"}
    assert all(way.step.seconds > without[way.kind[:3]].step.seconds for way in recomputing)


def test_ways_that_the_measurement_cannot_tell_apart_share_a_place_and_the_smallest_change_leads(run_file):
    free = replace(MEASURED, micro_batch_seconds=0.0, micro_batch_error=0.0)
    for measured in (free, replace(free, micro_batch_seconds=1e-4, micro_batch_error=1e-2)):
        found = told_apart(best_of(list(ways(load(run_file, ["train.global_batch=64"]), measured=measured))))
        micro_batches = {way.config.train.micro_batch for way in found[0]}
        assert micro_batches == {None, 1, 2, 4}
        assert found[0][0].config.train.micro_batch is None
    dear = told_apart(best_of(list(ways(load(run_file, ["train.global_batch=64"])))))
    assert {way.config.train.micro_batch for way in dear[0]} == {None}


def test_ways_of_two_measurements_never_share_a_place(run_file):
    config = load(run_file, ["train.global_batch=64"])
    found = [next(ways(config, measured=measured)) for measured in (MEASURED, replace(MEASURED, threads=2))]
    assert [len(group) for group in told_apart(found)] == [1, 1]


@pytest.mark.long
def test_the_best_ways_come_with_their_commands(capsys, run_file):
    with pytest.raises(SystemExit) as leaving:
        main(["plan", str(run_file), "--best", "train.global_batch=8"])
    output = capsys.readouterr().out
    assert leaving.value.code == 0
    assert f"measuring {available_cores()} rank" in output
    commands = re.findall(r"^   OMP_NUM_THREADS=\d+ (lucid launch .*)$", output, re.MULTILINE)
    assert 1 <= len(commands) <= 3
    for command in commands:
        _, _, _, ranks, path, *overrides = shlex.split(command)
        assert path == str(run_file)
        assert overrides[0] == "train.global_batch=8"
        load(run_file, overrides).shared_by(int(ranks)).check()
