"""Checkpoints are written in the background, one at a time; a failure is reported and does not end training."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from small_checkpoints import STATE, trained_model

from lucid.errors import CheckpointError
from lucid.training.checkpoints import store as store_module
from lucid.training.checkpoints.best import Best
from lucid.training.checkpoints.saver import Saver
from lucid.training.checkpoints.store import CheckpointStore


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


@pytest.fixture
def trained():
    return trained_model()


@pytest.fixture
def reports():
    return []


@pytest.fixture
def saver(store, trained, reports):
    return Saver(store.claim(9, None), *trained, {}, saved_step=0, report=reports.append)


@pytest.fixture
def gate(monkeypatch):
    """An event for which writing in the background waits."""
    gate = threading.Event()
    write = store_module.write_checkpoint

    def wait_and_write(folder, snapshot):
        assert gate.wait(timeout=60)
        write(folder, snapshot)

    monkeypatch.setattr(store_module, "write_checkpoint", wait_and_write)
    return gate


def at(step):
    return replace(STATE, step=step)


def steps(store):
    return sorted(int(path.name[-8:]) for path in store.folder.glob("[0-9]*"))


def finish(saver, trained, state):
    """Finish as the trainer does at the end of a run."""
    if not saver.has_saved(state):
        saver.save(state, trained[1].moments())


def in_the_way(store, step):
    path = store.folder / f".partial-0001-{step:08d}"
    path.write_text("in the way")
    return path


def test_training_continues_while_a_checkpoint_is_written_and_does_not_change_it(store, saver, trained, gate):
    model, optimizer = trained
    before = {name: array.copy() for name, array in (model.state_dict() | optimizer.moments()).items()}
    saver.begin(at(1))
    for array in (optimizer.flat.values, optimizer.first_moments):
        array += 1
    assert steps(store) == []
    gate.set()
    saver.wait()
    checkpoint, _ = store.newest()
    optimizer.restore(checkpoint.load(model, optimizer), 1)
    for name, array in (model.state_dict() | optimizer.moments()).items():
        np.testing.assert_array_equal(array, before[name])


def test_one_checkpoint_at_a_time_is_written(store, saver, trained, gate):
    saver.begin(at(1))
    threading.Timer(0, gate.set).start()
    saver.begin(at(2))
    assert steps(store)[0] == 1
    saver.wait()
    assert steps(store) == [1, 2]


def test_finish_returns_after_the_last_checkpoint_is_written(store, saver, trained, gate):
    gate.set()
    saver.begin(at(1))
    finish(saver, trained, at(2))
    assert steps(store) == [1, 2]
    assert saver.newest == store.folder / "0001-00000002"


def test_a_step_that_has_a_checkpoint_is_not_written_again(store, saver, trained, gate):
    gate.set()
    saver.begin(at(1))
    finish(saver, trained, at(1))
    assert steps(store) == [1]
    finish(saver, trained, at(1))


def test_a_failure_in_the_background_is_reported_once_and_the_next_checkpoint_is_tried(store, saver, reports):
    saver.begin(at(1))
    saver.wait()
    in_the_way(store, 2)
    saver.begin(at(2))
    saver.wait()
    (report,) = reports
    assert "0001-00000002 could not be written: File exists; the newest whole one is" in report
    assert report.endswith("0001-00000001; training goes on, and saves again when the next checkpoint is due")
    saver.begin(at(3))
    saver.wait()
    assert len(reports) == 1
    assert steps(store) == [1, 3]


def test_a_checkpoint_that_failed_in_the_background_is_written_at_the_end(store, saver, trained, reports):
    obstacle = in_the_way(store, 2)
    saver.begin(at(2))
    saver.wait()
    assert len(reports) == 1
    obstacle.unlink()
    finish(saver, trained, at(2))
    assert steps(store) == [2]


def test_a_failure_at_the_end_is_an_error(store, saver, trained, reports):
    in_the_way(store, 2)
    with pytest.raises(CheckpointError, match="could not be written: File exists; there is none before it"):
        finish(saver, trained, at(2))
    assert reports == []


def test_only_checkpoints_in_the_background_are_copied(saver, trained, monkeypatch):
    written = []
    monkeypatch.setattr(store_module, "write_checkpoint", lambda folder, snapshot: written.append(snapshot))
    finish(saver, trained, at(1))
    saver.begin(at(2))
    saver.wait()
    saver.begin(at(3))
    saver.wait()
    last, first_copy, second_copy = (snapshot.moments["first_moment.cls.predictions.bias"] for snapshot in written)
    moments = trained[1].first_moments
    assert np.shares_memory(last, moments)
    assert not np.shares_memory(first_copy, moments)
    assert np.shares_memory(first_copy, second_copy)


def test_a_run_that_was_started_again_meanwhile_says_so_once(store, saver, trained, reports):
    saver.begin(at(1))
    saver.wait()
    assert reports == []
    store.claim(9, saver.newest)
    for step in (2, 3):
        saver.begin(at(step))
        saver.wait()
    assert reports == [
        f"another process has started the run in {store.folder.parent} since: end this one, whose checkpoints are not "
        "resumed from any more"
    ]


def test_a_last_step_that_was_saved_before_its_evaluation_is_saved_again_if_the_best_is_kept(store, trained, reports):
    """A run that ends by train.max_hours learns only after its last checkpoint that it is the last."""
    for best, expected in ((False, ["0001-00000005"]), (True, ["0003-00000005"])):
        saver = Saver(store.claim(1, None, best=best), *trained, {}, saved_step=0, report=reports.append)
        saver.begin(at(5))
        finish(saver, trained, replace(at(5), best=Best(5, 4.0, 5, 0, "samples")))
        assert [path.name for path in store.folder.glob("[0-9]*")] == expected
    assert store.best() == saver.newest
