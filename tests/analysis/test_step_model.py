"""The model of a step at its limits, and its counts of bytes against those of the communicator."""

from dataclasses import replace

import numpy as np
import pytest

from lucid.analysis.step_model import (
    COMPUTING,
    LINK,
    NODE_SUMS,
    SLOWEST,
    UPDATE,
    GradientPart,
    Link,
    Measured,
    bytes_sent,
    crowding,
    doublings,
    efficiency,
    exposed,
    imbalance,
    predict,
    ready_fraction,
)
from lucid.distributed.communicators import between_nodes
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


@pytest.mark.parametrize(("nodes", "wire", "size"), [(2, np.float32, 4), (3, np.float32, 4), (4, np.uint16, 2)])
def test_a_node_sends_as_many_bytes_as_are_counted(nodes, wire, size):
    """The messages of one rank of `between_nodes`, counted."""

    class Ranks:
        rank, sent = 0, 0

        def __init__(self):
            self.size = nodes

        def Irecv(self, array, peer, tag):  # noqa: N802
            array[:] = 0

        def Isend(self, array, peer, tag):  # noqa: N802
            self.sent += array.nbytes

    class MPI:
        class Request:
            Testall = staticmethod(lambda requests: True)

    ranks, elements = Ranks(), 1200
    for _ in between_nodes.all_reduce(MPI, ranks, np.zeros(elements, np.float32), 0, np.dtype(wire)):
        pass
    assert ranks.sent == bytes_sent(elements, nodes, size)


def test_backward_hides_the_sums_of_all_buckets_but_the_last():
    config = settings(distributed={"bucket_megabytes": 4.0})
    link = Link(rate=4 * 2**20, latency=0.0)  # on two nodes, a second for each of three buckets
    assert exposed(config, PARTS, link, 2, backward_seconds=9.0) == pytest.approx(1.0)
    assert exposed(config, PARTS, link, 2, backward_seconds=0.3) == pytest.approx(0.1 + 3 - 0.3)
    # In one bucket nothing is hidden, and under the exact reduction neither.
    assert exposed(settings(), PARTS, link, 2, backward_seconds=9.0) == pytest.approx(3.0)
    exact = settings(distributed={"bucket_megabytes": 4.0}, train={"reduction": "exact", "micro_batch": 2})
    assert exposed(exact, PARTS, link, 2, backward_seconds=9.0) == pytest.approx(3.0)


def test_bfloat16_halves_the_link_and_a_sharded_optimizer_gathers_its_half_after_the_update():
    link = Link(rate=4 * 2**20, latency=0.0)
    rounded = settings(distributed={"wire_dtype": "bfloat16"})
    assert exposed(rounded, PARTS, link, 2, 9.0) == pytest.approx(1.5)
    sharded = settings(distributed={"bucket_megabytes": 4.0}, optimizer={"sharded": True})
    assert exposed(sharded, PARTS, link, 2, 9.0) == pytest.approx(0.5 + 1.5)


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
    assert crowding(two_cores, 2) == (1, 1)
    assert crowding(two_cores, 4) == (1, 2)
    assert crowding(replace(two_cores, ranks_per_node=2, crowding=1.5), 1) == (pytest.approx(1 / 1.5), 1)
    assert crowding(replace(two_cores, ranks_per_node=2, crowding=1.5), 4) == (1, 2)
    two, four = (predict(settings(), two_cores, None, 1, ranks, ALIKE) for ranks in (2, 4))
    assert four.parts[COMPUTING] == pytest.approx(two.parts[COMPUTING] + 0.02)  # twice the fixed part, half at a time


def test_the_busiest_rank_has_more_than_its_share_unless_rows_are_dealt_by_length():
    flops = np.random.default_rng(1).uniform(1, 3, 500)
    dealt, packed = settings(), settings(data={"path": "corpus", "packing": True})
    assert imbalance(packed, ALIKE, 8) == imbalance(packed, flops, 1) == 1
    assert 1 < imbalance(packed, flops, 4) < imbalance(packed, flops, 32) < 1.6
    assert 1 < imbalance(dealt, flops, 8) < 1.1 < imbalance(packed, flops, 8)
    assert imbalance(dealt, ALIKE, 6) == pytest.approx(11 / (64 / 6))


def test_the_word_embedding_is_ready_last_and_the_last_layer_first():
    names = [
        "cls.predictions.bias",
        "bert.encoder.layer.11.output.dense.weight",
        "bert.encoder.layer.0.output.dense.weight",
        "bert.embeddings.word_embeddings.weight",
    ]
    fractions = [ready_fraction(name, 12, 0.1) for name in names]
    assert fractions == pytest.approx([0.1, 0.1 + 0.9 / 12, 1, 1])


def test_measurements_survive_json():
    whole = replace(MEASURED, link=Link(1e9, 1e-6, 0.1))
    assert Measured.from_dict(whole.as_dict()) == whole
    assert Measured.from_dict(MEASURED.as_dict()) == MEASURED


def test_nodes_double_up_to_the_last():
    assert doublings(1) == [1]
    assert doublings(12) == [1, 2, 4, 8, 12]
