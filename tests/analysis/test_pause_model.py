"""How long evaluations and checkpoints interrupt a run."""

from dataclasses import replace

import pytest
from test_step_model import MEASURED, settings

from lucid.analysis.prediction.link_model import Link
from lucid.analysis.prediction.pause_model import pauses

MEASURED = replace(MEASURED, evaluation_seconds=0.5, checkpoint_seconds=2.0, held_out=(100, 7))


def test_ranks_share_the_batches_of_an_evaluation():
    config = settings(train={"steps": 100, "micro_batch": 8, "evaluate_every": 30, "evaluation_samples": 64})
    one, four = (pauses(config, MEASURED, None, 1, ranks) for ranks in (1, 4))
    assert one.evaluations == four.evaluations == 4  # the last one after the last step
    assert one.evaluation_seconds == pytest.approx(0.5 * (64 + 8))
    assert four.evaluation_seconds == pytest.approx(0.5 * (16 + 8))


def test_a_run_without_held_out_samples_never_evaluates_and_one_without_an_interval_evaluates_once():
    assert pauses(settings(), replace(MEASURED, held_out=()), None, 1, 1).evaluations == 0
    assert pauses(settings(), MEASURED, None, 1, 1).evaluations == 1


def test_the_last_checkpoint_is_not_counted_and_sharded_moments_travel_to_the_first_node():
    config = settings(train={"steps": 100, "checkpoint_every": 25}, optimizer={"sharded": True})
    link = Link(rate=2 * 4 * 3 * 2**20, latency=0.0)
    assert pauses(config, MEASURED, None, 1, 2).checkpoints == 3
    assert pauses(config, MEASURED, None, 1, 2).checkpoint_seconds == 2
    assert pauses(config, MEASURED, link, 4, 2).checkpoint_seconds == pytest.approx(2 + 3 / 4)
    found = pauses(config, MEASURED, link, 4, 2)
    assert found.seconds == found.evaluations * found.evaluation_seconds + found.checkpoints * found.checkpoint_seconds
