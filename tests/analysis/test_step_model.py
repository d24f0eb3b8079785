"""The model of a step at its limits."""

import json
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from lucid.analysis.prediction.link_model import GradientPart, Link
from lucid.analysis.prediction.step_model import (
    COMPUTING,
    LINK,
    NODE_SUMS,
    SLOWEST,
    UPDATE,
    Measured,
    crowding,
    doublings,
    efficiency,
    last_end,
    predict,
)
from lucid.training.config import from_dict

ALIKE = np.full(64, 1e9)
ENDLESS = Link(rate=np.inf, latency=0.0)
# Three parameters of a million elements, of which backward has one after each third.
PARTS = tuple(GradientPart(start * 2**20, (start + 1) * 2**20, (start + 1) / 3) for start in range(3))
MEASURED = Measured(
    nodes=1,
    ranks_per_node=1,
    threads=1,
    cores=8,
    seconds_per_flop=1e-11,
    micro_batch_seconds=0.02,
    micro_batch_error=0.0,
    update_seconds=0.03,
    add_seconds=0.01,
    node_sum_seconds=0.0,
    crowding=1.0,
    low=0.9,
    high=1.2,
    jitter=0.0,
    recompute="none",
    parts=PARTS,
)


def settings(**sections):
    made = {
        "run_folder": "run",
        "data": {"path": "corpus"},
        "train": {"steps": 10, "global_batch": 64, **sections.pop("train", {})},
        "optimizer": {"warmup_steps": 1, **sections.pop("optimizer", {})},
    }
    return from_dict(made | sections)


def test_one_node_has_no_link_and_a_rank_alone_waits_for_nobody():
    step = predict(settings(), MEASURED, None, 1, 1, ALIKE)
    assert step.parts == {COMPUTING: pytest.approx(0.02 + 64 * 0.01), UPDATE: 0.03, NODE_SUMS: 0, LINK: 0, SLOWEST: 0}
    assert step.low == pytest.approx(0.9 * step.seconds)
    assert step.high == pytest.approx(1.2 * step.seconds)


def test_with_an_endless_link_nodes_only_compute_and_add():
    one, four = (predict(settings(), MEASURED, ENDLESS, nodes, 1, ALIKE) for nodes in (1, 4))
    assert four.parts[LINK] == four.parts[SLOWEST] == 0
    assert four.parts[COMPUTING] == pytest.approx(0.02 + 16 * 0.01)
    assert four.parts[NODE_SUMS] == pytest.approx(0.01 * 3 / 4)
    assert efficiency(four, one) == pytest.approx(one.seconds / four.seconds / 4)


def test_a_slower_link_more_nodes_and_longer_messages_never_make_a_step_shorter():
    config = settings()
    rates = [1e6, 1e7, 1e8, 1e9]
    links = [predict(config, MEASURED, Link(rate, 1e-5), 4, 2, ALIKE).parts[LINK] for rate in rates]
    assert links == sorted(links, reverse=True)
    more = [
        efficiency(
            predict(config, MEASURED, Link(1e8, 1e-5), nodes, 1, ALIKE), predict(config, MEASURED, None, 1, 1, ALIKE)
        )
        for nodes in (1, 2, 4, 8)
    ]
    assert more == sorted(more, reverse=True)
    assert more[0] == 1
    later = [predict(config, MEASURED, Link(1e9, latency), 2, 1, ALIKE).seconds for latency in (0, 1e-4, 1e-2)]
    assert later == sorted(later)


def test_an_uncertain_link_widens_the_interval():
    config = settings()
    sure, unsure = (predict(config, MEASURED, Link(1e7, 0.0, error), 4, 1, ALIKE) for error in (0.0, 0.3))
    assert unsure.seconds == sure.seconds
    assert unsure.low < sure.low < sure.seconds < sure.high < unsure.high


def test_the_exact_reduction_adds_micro_batches_and_a_sharded_optimizer_divides_the_update():
    exact = settings(train={"reduction": "exact", "micro_batch": 4})
    step = predict(exact, MEASURED, None, 1, 2, ALIKE)
    assert step.parts[COMPUTING] == pytest.approx(8 * 0.02 + 32 * 0.01)
    assert step.parts[NODE_SUMS] == pytest.approx(0.01 * (2 / 3 + 7))
    assert predict(settings(optimizer={"sharded": True}), MEASURED, None, 1, 4, ALIKE).parts[UPDATE] == 0.03 / 4


def test_ranks_on_shared_cores_take_turns():
    two_cores = replace(MEASURED, cores=2)
    assert (crowding(two_cores, 4), two_cores.turns(2), two_cores.turns(4)) == (1, 1, 2)
    assert replace(two_cores, threads=2).turns(2) == 2
    crowded = replace(two_cores, ranks_per_node=2, crowding=1.5)
    assert crowding(crowded, 1) == pytest.approx(1 / 1.5)
    assert crowding(crowded, 4) == 1
    two, four = (predict(settings(), two_cores, None, 1, ranks, ALIKE) for ranks in (2, 4))
    assert four.parts[COMPUTING] == pytest.approx(two.parts[COMPUTING] + 0.02)  # twice the fixed part, half at a time
    again = predict(settings(), replace(two_cores, ranks_per_node=4), None, 1, 2, ALIKE)
    assert again.parts[COMPUTING] == pytest.approx(two.parts[COMPUTING] / 2)


def packed():
    """Settings under which rows are dealt by place."""
    return settings(data={"path": "corpus", "packing": True})


def test_the_busiest_rank_has_more_than_its_share_unless_rows_are_dealt_by_length():
    flops = np.random.default_rng(1).uniform(1, 3, 500)

    def busiest(config, flops, size):
        return last_end(config, flops, 1, size, at_once=size)

    assert busiest(packed(), ALIKE, 8) == busiest(packed(), flops, 1) == 1
    assert 1 < busiest(packed(), flops, 4) < busiest(packed(), flops, 32) < 1.6
    assert 1 < busiest(settings(), flops, 8) < 1.1 < busiest(packed(), flops, 8)
    assert busiest(settings(), ALIKE, 6) == pytest.approx(11 / (64 / 6))
    steady, jittering = (last_end(packed(), ALIKE, 4, 2, 2, jitter) for jitter in (0.0, 0.1))
    assert steady == 1
    assert 1.1 < jittering < 1.2  # the expected maximum of 8 normal numbers is 1.42


def test_on_shared_cores_the_last_rank_gets_what_the_others_leave():
    """Of four ranks on two cores with 1, 2, 3 and 6 units of work, one is alone from the 6th unit of time on."""
    flops = np.array([1.0, 2.0, 3.0, 6.0])
    config = settings(train={"global_batch": 4}, data={"path": "corpus", "packing": True})
    with mock.patch.object(np.random, "default_rng", return_value=InOrder()):
        assert last_end(config, flops, 1, 4, at_once=2) == pytest.approx((2 * 1 + 1.5 * 1 + 1 + 3) / 3)
        assert last_end(config, flops, 1, 4, at_once=4) == last_end(config, flops, 2, 2, at_once=2) == 2
        assert last_end(config, flops, 1, 4, at_once=1) == pytest.approx(12 / 3)


class InOrder:
    """Draws each sample once, and no jitter."""

    def choice(self, flops, shape):
        return np.broadcast_to(flops, shape)

    def standard_normal(self, size):
        return np.zeros(size)


def test_measurements_survive_json():
    whole = replace(MEASURED, link=Link(1e9, 1e-6, 0.1, 1e-5, 1e-9), held_out=(3, 5))
    assert Measured.from_dict(json.loads(json.dumps(whole.as_dict()))) == whole
    assert Measured.from_dict(MEASURED.as_dict()) == MEASURED


def test_nodes_double_up_to_the_last():
    assert doublings(1) == [1]
    assert doublings(12) == [1, 2, 4, 8, 12]
