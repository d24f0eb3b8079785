"""A run whose checkpoints fail, on the real command line: it goes on, says so, and loses nothing that it had."""

import re

import pytest

from lucid.training.store import CheckpointStore, find_model

TRAIN = ("-m", "mpi4py", "-m", "lucid", "train")

# The command line, with a writer that fails, or is killed with its process, in the middle of the checkpoint of a step.
DISTURBED = """
import os, signal, sys
from lucid.cli import main
from lucid.models.bert import hub

def disturbed(path, tensors, write=hub.write_tensors):
    if path.name == "optimizer.safetensors" and path.parent.name.endswith(os.environ["DISTURBED_STEP"]):
        path.write_bytes(b"half")
        {disturbance}
    write(path, tensors)

hub.write_tensors = disturbed
main()
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
FULL_DISK = "raise OSError(28, os.strerror(28), str(path))"


@pytest.fixture
def train(run_ranks, run_file, tmp_path):
    """A function that trains into a folder of its own, disturbed at a step if asked."""

    def run(name, *overrides, disturbance="", step=""):
        program = ("-m", "mpi4py", "-c", DISTURBED.format(disturbance=disturbance), "train") if disturbance else TRAIN
        folder = f"run_folder={tmp_path / name}"
        return run_ranks(2, *program, str(run_file), folder, *overrides, seconds=120, DISTURBED_STEP=step)

    return run


def losses_and_weights(folder, losses):
    return losses(folder), (find_model(folder) / "model.safetensors").read_bytes()


def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_as_if_it_had_not(train, tmp_path, losses):
    assert train("undisturbed").returncode == 0
    killed = train("killed", disturbance=KILL, step="00000040")
    assert killed.returncode != 0
    store = CheckpointStore(tmp_path / "killed/checkpoints")
    assert (store.folder / ".partial-0001-00000040/optimizer.safetensors").read_bytes() == b"half"
    checkpoint, problems = store.newest()
    assert (checkpoint.state.step, problems) == (20, [])
    resumed = train("killed")
    assert resumed.returncode == 0, resumed.stdout
    assert "goes on from step 20" in resumed.stdout
    assert losses_and_weights(tmp_path / "killed", losses) == losses_and_weights(tmp_path / "undisturbed", losses)
    assert not list(store.folder.glob(".partial-*"))


def test_a_checkpoint_that_fails_under_way_is_told_and_the_run_goes_on(train, tmp_path):
    finished = train("run", disturbance=FULL_DISK, step="00000040")
    assert finished.returncode == 0, finished.stdout
    assert "0001-00000040 could not be written: No space left on device; the newest whole one is" in finished.stdout
    assert "0001-00000020; training goes on" in finished.stdout
    assert "Traceback" not in finished.stdout
    names = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert names == {".incarnation-0001", "0001-00000020", "0001-00000050"}


def test_a_last_checkpoint_that_fails_ends_all_ranks_with_one_sentence(train, tmp_path):
    failed = train("run", disturbance=FULL_DISK, step="00000050")
    assert failed.returncode == 2, failed.stdout
    assert re.search(r"lucid: checkpoint .*0001-00000050 could not be written: No space left on device", failed.stdout)
    assert failed.stdout.count("lucid: ") == 1
    assert "Traceback" not in failed.stdout
    assert find_model(tmp_path / "run").name == "0001-00000040"


def test_a_program_error_of_the_writer_ends_all_ranks(train):
    failed = train("run", disturbance="1 / 0", step="00000020")
    assert failed.returncode == 1, failed.stdout
    assert re.search(r"rank 0 of 2 failed.*, all ranks end:", failed.stdout)
    assert "ZeroDivisionError" in failed.stdout


def test_a_rank_that_fails_does_not_wait_for_a_checkpoint_that_never_ends(run_ranks, run_file):
    """The writer hangs on a pipe that nobody reads; step 23 raises on the first rank."""
    program = DISTURBED.format(
        disturbance="""
        os.mkfifo(str(path) + ".pipe")
        open(str(path) + ".pipe", "wb")"""
    ).replace(
        "\nmain()",
        """
from lucid.training.trainer import Trainer
def step(self, *arguments, step=Trainer._step):
    if self.run.step == 22 and self.run.is_first:
        1 / 0
    step(self, *arguments)
Trainer._step = step
main()""",
    )
    arguments = ("-m", "mpi4py", "-c", program, "train", str(run_file))
    failed = run_ranks(2, *arguments, seconds=60, DISTURBED_STEP="00000020")
    assert failed.returncode == 1, failed.stdout
    assert "ZeroDivisionError" in failed.stdout
