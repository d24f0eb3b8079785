"""Traces: one valid file for all ranks on one clock, of the steps that were asked for; the steps keep their bits."""

import gzip
import json
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from unittest import mock

import pytest
from nodes import SeveralNodes

from lucid.distributed import clocks, connection
from lucid.distributed.clocks import HostClock, Reading
from lucid.distributed.communicators.announcement import announced
from lucid.errors import ConfigError
from lucid.training import spans
from lucid.training.spans import Recorder

STEPS = ("train.steps=8", "data.prefetch=1", "train.checkpoint_every=4", "train.evaluate_every=5")
TRACED = "train.trace=[4,6]"
AHEAD = 11.0


def read_trace(path):
    return json.loads(gzip.decompress(path.read_bytes()))


def spans_of(trace, rank=0):
    return [event for event in trace["traceEvents"] if event["ph"] == "X" and event["pid"] == rank]


def ends(event):
    return event["ts"] + event["dur"]


def within(inner, outer, slack=0.0021):
    """Whether one span lies in another; times are rounded to nanoseconds."""
    return inner["ts"] >= outer["ts"] - slack and ends(inner) <= ends(outer) + slack


def check_trace(trace, ranks, steps):
    """Every event is whole, and the spans of each thread nest, within the time of the trace."""
    events = trace["traceEvents"]
    assert all({"name", "ph", "ts", "pid", "tid"} <= event.keys() for event in events)
    assert {event["pid"] for event in events} == set(range(ranks))
    last = max(ends(event) for event in events if event["ph"] == "X")
    assert all(0 <= event["ts"] <= last for event in events)
    for rank in range(ranks):
        own = spans_of(trace, rank)
        assert [event["args"]["step"] for event in own if event["name"].startswith("step ")] == steps
        for thread in {event["tid"] for event in own}:
            enclosing = []
            for event in sorted((e for e in own if e["tid"] == thread), key=lambda e: (e["ts"], -e["dur"])):
                while enclosing and ends(enclosing[-1]) <= event["ts"] + 0.0021:
                    enclosing.pop()
                assert not enclosing or within(event, enclosing[-1]), (event, enclosing[-1])
                enclosing.append(event)


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (1, ("train.micro_batch=5", "data.workers=0")),
        pytest.param(2, ("train.micro_batch=3", "distributed.bucket_megabytes=0.02"), marks=pytest.mark.long),
        (2, ("train.micro_batch=2", "train.reduction=exact", "optimizer.sharded=true", "train.recompute=layer")),
    ],
    ids=["one rank", "two ranks", "exact, sharded, recomputed"],
)
def test_a_trace_is_valid_and_changes_no_bit(train, tmp_path, ranks, overrides):
    losses = [train(ranks, name, *STEPS, *overrides, *more) for name, more in (("plain", ()), ("traced", (TRACED,)))]
    assert losses[0] == losses[1]
    weights = [tmp_path / name / "checkpoints/0001-00000008/model.safetensors" for name in ("plain", "traced")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert [path.name for path in tmp_path.glob("*/trace*")] == ["trace-4-6.json.gz"]

    trace = read_trace(tmp_path / "traced/trace-4-6.json.gz")
    check_trace(trace, ranks, [4, 5, 6])
    assert trace["otherData"]["largest_clock_uncertainty_seconds"] == 0
    for rank in range(ranks):
        check_steps(spans_of(trace, rank), recomputed="train.recompute=layer" in overrides)
        sums = [event for event in trace["traceEvents"] if event["pid"] == rank and event["ph"] == "b"]
        assert bool(sums) == (ranks > 1)
    names = {event["name"] for event in spans_of(trace)}
    assert names >= {"evaluating", "saving a checkpoint", "write checkpoint", "make a batch"}
    assert "control message" in names
    assert ("wait for all_reduce" in names) == (ranks > 1)


def check_steps(own, recomputed):
    """Each step waits for its batch, runs its micro-batches layer by layer, and updates the weights at the end."""
    for step in (event for event in own if event["name"].startswith("step ")):
        parts = [event for event in own if event["tid"] == step["tid"] and within(event, step)]
        (gradients,) = [event for event in parts if event["name"] == "gradients"]
        order = ["control message", "wait for a batch", "gradients", "clipping", "optimizer"]
        found = [next(event for event in parts if event["name"] == name) for name in order]
        assert all(ends(before) <= after["ts"] + 0.0021 for before, after in pairwise(found))
        micro_batches = [event for event in parts if event["name"] == "micro-batch"]
        assert [event["args"]["number"] for event in micro_batches] == list(range(len(micro_batches)))
        assert len(micro_batches) in (2, 3)
        for micro_batch in micro_batches:
            assert within(micro_batch, gradients)
            check_layers([event for event in parts if within(event, micro_batch)], recomputed)


def check_layers(parts, recomputed):
    forward = ["embeddings", "encoder.layer.0", "encoder.layer.1"]
    times = {event["name"]: event for event in sorted(parts, key=lambda event: -event["ts"])}
    for kind, layers in (("forward", forward), ("backward", ["heads", *reversed(forward)])):
        spans_ = [times[f"{kind} {layer}"] for layer in layers]
        assert all(ends(before) <= after["ts"] + 0.0021 for before, after in pairwise(spans_))
        assert all(within(each, times[kind]) for each in spans_)
    again = [e for e in parts if e["name"].startswith("forward encoder") and within(e, times["backward"])]
    assert len(again) == 2 * recomputed


@contextmanager
def rank_1_on_another_host():
    """The ranks are on hosts of their own, whose clocks differ by `AHEAD` seconds."""
    right = time.monotonic
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(connection, "MPICommunicator", SeveralNodes))
        if announced().rank == 1:
            stack.enter_context(mock.patch.object(clocks, "clock_of_host", return_value="another"))
            stack.enter_context(mock.patch.object(time, "monotonic", side_effect=lambda: right() + AHEAD))
        yield


def test_clocks_of_two_hosts_become_one(on_ranks, run_file, tmp_path):
    finished = on_ranks(2, "train", run_file, *STEPS, TRACED, "train.micro_batch=3", within=rank_1_on_another_host)
    assert finished.returncode == 0, finished.stdout
    assert "trace of steps 4 to 6: " in finished.stdout
    trace = read_trace(tmp_path / "run/trace-4-6.json.gz")
    check_trace(trace, 2, [4, 5, 6])
    for rank in (0, 1):
        check_steps(spans_of(trace, rank), recomputed=False)
    about = trace["otherData"]
    uncertainty = about["largest_clock_uncertainty_seconds"]
    assert 0 < uncertainty < 1
    assert about["ranks"][0]["clock_offset_seconds"] == [0, 0]
    assert about["ranks"][1]["clock_offset_seconds"] == pytest.approx([AHEAD, AHEAD], abs=uncertainty)
    # A rank has the sum of a message only after the other one has begun to send it.
    messages = [[e for e in spans_of(trace, rank) if e["name"] == "control message"] for rank in (0, 1)]
    steps = [[e for e in spans_of(trace, rank) if e["name"].startswith("step ")] for rank in (0, 1)]
    for number in (1, 2):
        for rank in (0, 1):
            assert ends(messages[rank][number]) >= steps[1 - rank][number - 1]["ts"] - 2e6 * uncertainty


def test_a_drift_is_spread_over_the_time_between_the_readings():
    clock = HostClock(
        Reading(at=100.0, offset=11.0, uncertainty=1e-4), Reading(at=200.0, offset=11.2, uncertainty=2e-4)
    )
    assert [clock.on_first_rank(at) for at in (100.0, 150.0, 200.0)] == pytest.approx([89.0, 138.9, 188.8])
    assert clock.uncertainty == 2e-4


def test_a_stopped_run_writes_what_there_is_and_goes_on_with_the_rest(train_until, run_file, on_ranks, tmp_path):
    folder = tmp_path / "stopped"
    train_until(2, "stopped", 5, *STEPS, TRACED)
    assert [path.name for path in folder.glob("trace*")] == ["trace-4-5.json.gz"]
    stopped = read_trace(folder / "trace-4-5.json.gz")
    check_trace(stopped, 2, [4, 5])
    assert "end of the run" in {event["name"] for event in spans_of(stopped)}
    # Nothing is traced yet when this one stops.
    train_until(2, "sooner", 3, *STEPS, TRACED)
    assert not [*(tmp_path / "sooner").glob("trace*")]
    finished = on_ranks(2, "train", run_file, f"run_folder={folder}", *STEPS, TRACED)
    assert finished.returncode == 0, finished.stdout
    assert {path.name for path in folder.glob("trace*")} == {"trace-4-5.json.gz", "trace-6-6.json.gz"}
    on_ranks(2, "train", run_file, f"run_folder={folder}", *STEPS, "train.steps=9", "train.trace=[1,5]")
    assert len([*folder.glob("trace*")]) == 2


@pytest.mark.long
def test_a_trace_of_the_last_step_shows_the_last_checkpoint(train, tmp_path):
    train(1, "run", *STEPS, "train.trace=[8,8]")
    names = {event["name"] for event in spans_of(read_trace(tmp_path / "run/trace-8-8.json.gz"))}
    assert names >= {"step 8", "evaluating", "write checkpoint"}


def test_a_trace_that_cannot_be_written_costs_a_sentence(on_ranks, run_file, tmp_path):
    (tmp_path / "run/trace-4-6.json.gz/in the way").mkdir(parents=True)
    (tmp_path / "run/checkpoints").mkdir()
    finished = on_ranks(1, "train", run_file, *STEPS, TRACED)
    assert finished.returncode == 0, finished.stdout
    assert "trace-4-6.json.gz could not be written: " in finished.stdout
    assert "training goes on without this trace" in finished.stdout
    assert "finished at step 8 of 8" in finished.stdout


@contextmanager
def few_spans(most):
    with mock.patch.object(spans, "MOST_SPANS", most):
        yield


@pytest.mark.long
def test_a_trace_is_bounded_and_says_what_it_lacks(on_ranks, run_file, tmp_path):
    finished = on_ranks(1, "train", run_file, *STEPS, TRACED, within=partial(few_spans, 20))
    assert finished.returncode == 0, finished.stdout
    trace = read_trace(tmp_path / "run/trace-4-6.json.gz")
    assert len(spans_of(trace)) == 20
    assert trace["otherData"]["ranks"][0]["lost_spans"] > 20


@pytest.mark.parametrize("steps", ["[6,4]", "[7,9]"])
def test_steps_that_a_run_does_not_take_are_refused(on_ranks, run_file, steps):
    finished = on_ranks(1, "train", run_file, *STEPS, f"train.trace={steps}")
    assert finished.returncode == ConfigError.exit_code
    assert f"train.trace is {steps.replace(',', ', ')}, but a trace goes from one step" in finished.stdout


def test_spans_of_a_thread_that_goes_on_are_kept():
    recorder = Recorder()
    with recorder.span("outer") as outer:
        recorder.timed("inner", lambda: None)()
    assert [span.name for span in recorder.spans] == ["outer", "inner"]
    assert outer.began <= recorder.spans[1].began <= recorder.spans[1].ended <= outer.ended
