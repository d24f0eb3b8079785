"""Where the time of a step goes: the parts do not overlap, add up, and come from ordinary steps."""

import itertools
import threading

import numpy as np
import pytest

from lucid import kernels
from lucid.analysis import breakdown
from lucid.analysis.breakdown import Clock, measure
from lucid.distributed import StopRequest
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.kernels import reference
from lucid.kernels.arguments import UpdateBuffers
from lucid.training.config import load
from lucid.training.setup import open_run
from lucid.training.trainer import Trainer

STEPS = 3
# With those that warm up, the untimed ones between, and the last, which ends none.
ALL_STEPS = breakdown._WARM_UP_STEPS + 2 * STEPS + 1


@pytest.fixture
def ticks(monkeypatch):
    """A clock that advances by a second whenever it is read."""
    seconds = itertools.count()
    monkeypatch.setattr(breakdown.time, "perf_counter", lambda: next(seconds))


def run_of(run_file, communicator):
    never = ["train.log_every=1000", "train.checkpoint_every=1000", "train.steps=1000"]
    return open_run(load(run_file, never), communicator)


@pytest.fixture
def measured(run_file):
    run = run_of(run_file, SingleCommunicator())
    return run, measure(run, STEPS)


def test_time_of_nested_calls_counts_once(ticks):
    clock = Clock()
    clock.running = True
    inner = clock.timed("inner", lambda: None)
    clock.timed("outer", lambda: (inner(), inner()))()
    # The outer reads at 0 and 5, the inner at 1 and 2, and at 3 and 4.
    found = {name: (part.seconds, part.calls) for name, part in clock.parts.items()}
    assert found == {"outer": (3, 1), "inner": (2, 2)}


def test_other_threads_and_times_without_the_clock_do_not_count():
    clock = Clock()
    timed = clock.timed("work", lambda: "done")
    assert timed() == "done"
    clock.running = True
    thread = threading.Thread(target=timed)
    thread.start()
    thread.join()
    assert clock.parts["work"].calls == 0


def test_bytes_are_those_of_argument_and_result_arrays():
    clock = Clock()
    clock.running = True
    clock.timed("copy", np.copy)(np.zeros(10))
    clock.timed("nothing", lambda array: array)(np.zeros(10))
    clock.timed("adamw", lambda buffers, factors: None)(UpdateBuffers(*np.zeros((4, 10))), np.zeros(4))
    assert {name: part.bytes for name, part in clock.parts.items()} == {"copy": 160, "nothing": 0, "adamw": 592}


def test_the_parts_add_up_to_the_step(measured):
    _, result = measured
    assert len(result.plain_seconds) == STEPS
    calls = {"linear", "attention_gradient", "adamw", "squared_sums", "root_of_sum"}
    assert calls | {"communication", "data"} <= result.parts.keys()
    assert all(part.seconds > 0 for part in result.parts.values())
    assert 0 < sum(part.seconds for part in result.parts.values()) < result.seconds
    assert result.python + sum(part.seconds for part in result.parts.values()) == pytest.approx(result.seconds)


def test_every_step_has_the_same_calls(measured):
    run, result = measured
    # Of an encoder layer query, key and value are one.
    linear_layers = 2 * 4 + 4
    assert result.parts["linear"].calls == result.parts["linear_weight_gradient"].calls == linear_layers
    assert result.parts["adamw"].calls == 2
    assert result.sequences == run.config.train.global_batch


def test_timed_steps_give_the_same_weights(measured, run_file):
    timed, _ = measured
    plain = run_of(run_file, SingleCommunicator())
    trainer = Trainer(plain)
    with trainer.batches(ALL_STEPS) as batches:
        trainer.loop(batches, StopRequest())
    assert timed.step == plain.step == ALL_STEPS
    np.testing.assert_array_equal(timed.ddp.flat.values, plain.ddp.flat.values)


def test_afterwards_nothing_is_timed(run_file):
    run = run_of(run_file, SingleCommunicator())
    implementations = kernels.of(np.zeros(1, np.float32)), reference
    before = [getattr(each, name) for each in implementations for name in breakdown.KERNELS]
    measure(run, STEPS)
    assert [getattr(each, name) for each in implementations for name in breakdown.KERNELS] == before
    assert not vars(run.communicator).keys() & breakdown._COLLECTIVES
