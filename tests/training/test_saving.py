"""A run whose checkpoints fail: it reports that, continues, and loses no earlier checkpoint."""

import os
import re
import signal
from contextlib import contextmanager
from functools import partial
from unittest import mock

from launching import TRAIN

from lucid.models.bert import hub
from lucid.training.checkpoints.store import CheckpointStore, find_model
from lucid.training.trainer import Trainer


@contextmanager
def writer_disturbed(step, disturb):
    """Let the writer call `disturb` with the path of its file in the middle of the checkpoint of `step`."""
    write = hub.write_tensors

    def disturbed(path, tensors):
        if path.name == "optimizer.safetensors" and path.parent.name.endswith(f"{step:08d}"):
            path.write_bytes(b"half")
            disturb(path)
        write(path, tensors)

    with mock.patch.object(hub, "write_tensors", disturbed):
        yield


def fill_the_disk(path):
    raise OSError(28, os.strerror(28), str(path))


def killed_at_40():
    return writer_disturbed(40, lambda path: os.kill(os.getpid(), signal.SIGKILL))


def wrong_at_20():
    return writer_disturbed(20, lambda path: 1 / 0)


@contextmanager
def hung_at_20_and_wrong_at_23():
    """The writer hangs on a pipe that nobody reads; step 23 raises on the first rank."""
    step = Trainer._step

    def wrong(self, *arguments):
        if self.run.step == 22 and self.run.is_first:
            1 / 0  # noqa: B018
        step(self, *arguments)

    def hang(path):
        pipe = path.with_suffix(".pipe")
        os.mkfifo(pipe)
        pipe.open("wb")

    with writer_disturbed(20, hang), mock.patch.object(Trainer, "_step", wrong):
        yield


def test_a_run_killed_while_it_writes_a_checkpoint_resumes_as_if_undisturbed(
    run_within, run_ranks, run_file, undisturbed, tmp_path, losses
):
    killed = run_within(2, killed_at_40, "train", str(run_file))
    assert killed.returncode != 0
    store = CheckpointStore(tmp_path / "run/checkpoints")
    assert (store.folder / ".partial-0001-00000040/optimizer.safetensors").read_bytes() == b"half"
    checkpoint, problems = store.newest()
    assert (checkpoint.state.step, problems) == (20, [])
    resumed = run_ranks(2, *TRAIN, str(run_file))
    assert resumed.returncode == 0, resumed.stdout
    assert "resumes from step 20" in resumed.stdout
    assert losses(tmp_path / "run") == losses(undisturbed(2))
    weights = [find_model(folder) / "model.safetensors" for folder in (tmp_path / "run", undisturbed(2))]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not list(store.folder.glob(".partial-*"))


def test_a_checkpoint_that_fails_during_the_run_is_reported_and_the_run_continues(on_ranks, run_file, tmp_path):
    finished = on_ranks(2, "train", run_file, within=partial(writer_disturbed, 40, fill_the_disk))
    assert finished.returncode == 0, finished.stdout
    assert "0001-00000040 could not be written: No space left on device; the newest whole one is" in finished.stdout
    assert "0001-00000020; training goes on" in finished.stdout
    assert "Traceback" not in finished.stdout
    names = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert names == {".incarnation-0001", "0001-00000020", "0001-00000050"}


def test_a_last_checkpoint_that_fails_ends_all_ranks_with_one_sentence(on_ranks, run_file, tmp_path):
    failed = on_ranks(2, "train", run_file, within=partial(writer_disturbed, 50, fill_the_disk))
    assert failed.returncode == 2, failed.stdout
    assert re.search(r"lucid: checkpoint .*0001-00000050 could not be written: No space left on device", failed.stdout)
    assert failed.stdout.count("lucid: ") == 1
    assert "Traceback" not in failed.stdout
    assert find_model(tmp_path / "run").name == "0001-00000040"


def test_a_program_error_of_the_writer_ends_all_ranks(run_within, run_file):
    failed = run_within(2, wrong_at_20, "train", str(run_file))
    assert failed.returncode == 1, failed.stdout
    assert re.search(r"rank 0 of 2 failed.*, all ranks end:", failed.stdout)
    assert "ZeroDivisionError" in failed.stdout


def test_a_rank_that_fails_does_not_wait_for_a_checkpoint_that_never_ends(run_within, run_file):
    failed = run_within(2, hung_at_20_and_wrong_at_23, "train", str(run_file))
    assert failed.returncode == 1, failed.stdout
    assert "ZeroDivisionError" in failed.stdout
