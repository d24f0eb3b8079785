"""The model of sums between nodes at its limits, and its counts of bytes against those of the communicator."""

from dataclasses import replace

import numpy as np
import pytest
from test_step_model import PARTS, settings

from lucid.analysis.prediction import link_model
from lucid.analysis.prediction.link_model import Link, Nodes, bytes_sent, ready_fraction, seconds_of_sums
from lucid.distributed.communicators import between_nodes

TWO = Nodes(2, ranks=1)


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
    assert seconds_of_sums(config, PARTS, link, TWO, backward_seconds=9.0) == pytest.approx(1.0)
    assert seconds_of_sums(config, PARTS, link, TWO, backward_seconds=0.3) == pytest.approx(0.1 + 3 - 0.3)
    # In one bucket nothing is hidden, and under the exact reduction neither.
    assert seconds_of_sums(settings(), PARTS, link, TWO, backward_seconds=9.0) == pytest.approx(3.0)
    exact = settings(distributed={"bucket_megabytes": 4.0}, train={"reduction": "exact", "micro_batch": 2})
    assert seconds_of_sums(exact, PARTS, link, TWO, backward_seconds=9.0) == pytest.approx(3.0)


def test_bfloat16_halves_the_link_and_a_sharded_optimizer_gathers_its_half_after_the_update():
    link = Link(rate=4 * 2**20, latency=0.0)
    rounded = settings(distributed={"wire_dtype": "bfloat16"})
    assert seconds_of_sums(rounded, PARTS, link, TWO, 9.0) == pytest.approx(1.5)
    sharded = settings(distributed={"bucket_megabytes": 4.0}, optimizer={"sharded": True})
    assert seconds_of_sums(sharded, PARTS, link, TWO, 9.0) == pytest.approx(0.5 + 1.5)


def test_the_word_embedding_is_ready_last_and_the_last_layer_first():
    names = [
        "cls.predictions.bias",
        "bert.encoder.layer.11.output.dense.weight",
        "bert.encoder.layer.0.output.dense.weight",
        "bert.embeddings.word_embeddings.weight",
    ]
    fractions = [ready_fraction(name, 12, 0.1) for name in names]
    assert fractions == pytest.approx([0.1, 0.1 + 0.9 / 12, 1, 1])


def test_messages_take_their_processor_time_from_backward_unless_a_core_is_free():
    config = settings(distributed={"bucket_megabytes": 4.0})
    # On two nodes a bucket takes a second of the link, and half of one of the core.
    link = Link(rate=4 * 2**20, latency=0.0, seconds_per_byte=0.5 / (4 * 2**20))
    # Of the first two buckets backward hides all but the processor time.
    assert seconds_of_sums(config, PARTS, link, TWO, 9.0) == pytest.approx(1 + 2 * 0.5)
    assert seconds_of_sums(config, PARTS, link, replace(TWO, has_free_cores=True), 9.0) == pytest.approx(1)
    # More ranks share it.
    assert seconds_of_sums(config, PARTS, link, Nodes(2, ranks=2), 9.0) == pytest.approx(1 + 2 * 0.25)
    # After backward it hides in the wait for the link, unless it takes longer.
    assert seconds_of_sums(settings(), PARTS, link, TWO, 9.0) == pytest.approx(3)
    busy = replace(link, seconds_per_byte=2 / (4 * 2**20))
    assert seconds_of_sums(settings(), PARTS, busy, TWO, 9.0) == pytest.approx(6)


def test_while_a_rank_computes_its_thread_moves_messages_more_slowly(monkeypatch):
    monkeypatch.setattr(link_model, "_WHILE_COMPUTING", 2 * 2**20)
    config = settings(distributed={"bucket_megabytes": 4.0})
    link = Link(rate=4 * 2**20, latency=0.0, seconds_per_byte=1e-12)
    # Of three buckets backward hides 1.5, at 2 s each; the others take a second each.
    assert seconds_of_sums(config, PARTS, link, Nodes(2, 1), 4.5) == pytest.approx(1.5, abs=1e-3)


@pytest.mark.parametrize(("nodes", "expected"), [(2, 1), (3, 2), (256, 255)])
def test_each_rank_exchanges_a_message_with_every_other_node_for_each_bucket_and_half(nodes, expected):
    config = settings(distributed={"bucket_megabytes": 4.0})
    link = Link(rate=np.inf, latency=0.0, seconds_per_message=1e-3)
    assert seconds_of_sums(config, PARTS, link, Nodes(nodes, 1), 0.0) == pytest.approx(3 * 2 * expected * 1e-3)
    sharded = settings(distributed={"bucket_megabytes": 4.0}, optimizer={"sharded": True})
    assert seconds_of_sums(sharded, PARTS, link, Nodes(nodes, 1), 0.0) == pytest.approx(3 * 2 * expected * 1e-3)
