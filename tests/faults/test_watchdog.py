"""A rank that does not come to a collective ends the run within the limit, with a message; a slow rank does not."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from launching import FEW_CORES

from lucid.errors import ExitCode

long = pytest.mark.long

LIMIT = 2
LIMITED = f"train.watchdog_seconds={LIMIT}"
# The time for a whole test. On a busy machine the start of Python and the steps before the fault take a part of it.
SECONDS = 60

# `lucid train`, in which code runs before a step of a rank, or replaces a function of lucid.
PROGRAM = """
import ctypes, os, signal, sys, time
from lucid.cli import main
from lucid.training import evaluation, trainer

step_of, evaluate_of = trainer.Trainer._step, trainer.evaluate

def step(self, *arguments):
    run, rank = self.run, self.run.communicator.rank
    if {condition}: {fault}
    step_of(self, *arguments)

trainer.Trainer._step = step
{patch}
main()
"""


@pytest.fixture
def train_with(run_ranks, run_file):
    """A function that trains on three ranks with a fault planted where a condition holds."""

    def run(fault, condition="run.step == 8 and rank == 1", *overrides, patch="", launch=("-m", "mpi4py")):
        program = PROGRAM.format(fault=fault, condition=condition, patch=patch)
        return run_ranks(3, *launch, "-c", program, "train", str(run_file), LIMITED, *overrides, seconds=SECONDS)

    return run


def assert_ended(finished, finding):
    """The watchdog of one rank ended the run with this message, and showed the stacks of the waiting ranks."""
    assert finished.returncode == ExitCode.HUNG, finished.stdout
    assert finished.stdout.count("ranks wait in vain") == 1, finished.stdout
    assert re.search(finding, finished.stdout), finished.stdout
    assert re.search(r"ranks? [\d, -]+: .*communicators/\w+\.py:\d+ in \w+", finished.stdout), finished.stdout
    assert "Traceback" not in finished.stdout


WAITING = r"ranks wait in vain in all_reduce \(wait \d+(?:, bucket \d)?\) at step 8, all ranks end: "


@long
@pytest.mark.parametrize("launch", [("-m", "mpi4py"), ()], ids=["mpi4py", "plain"])
def test_a_stopped_rank_ends_the_run(train_with, launch):
    finished = train_with("os.kill(os.getpid(), signal.SIGSTOP)", launch=launch)
    assert_ended(finished, WAITING + r"rank 1 on \S+ does not answer")


@long
def test_what_a_stopped_rank_has_done_is_read_from_the_page_of_its_parent(train_with):
    finished = train_with("os.kill(os.getpid(), signal.SIGSTOP)", launch=("-m", "lucid.launch.rank_parent"))
    assert_ended(finished, WAITING + r"rank 1 on \S+ does not answer")
    assert re.search(r"rank 1: outside of any collective at step 7, for \d+\.\d s", finished.stdout)
    assert re.search(r"rank 1: before that in all_reduce \(wait \d+", finished.stdout)


@long
def test_a_rank_whose_watchdog_cannot_run_ends_the_run(train_with):
    """The call holds Python's global lock."""
    finished = train_with("ctypes.PyDLL(None).sleep(1000)")
    assert_ended(finished, WAITING + r"rank 1 on \S+ does not answer")


def test_a_rank_in_an_endless_loop_ends_the_run_and_shows_where_it_is(train_with, tmp_path):
    finished = train_with("any(number for number in iter(int, 1))")
    assert_ended(finished, WAITING + r"rank 1 on \S+ is at step 7, outside of any collective, after all_reduce \(wait")
    assert re.search(r"rank 1:   <string>:\d+ in step", finished.stdout)
    assert re.search(r"ranks? [02, ]+: before that in all_reduce \(wait \d+", finished.stdout)
    (report,) = (tmp_path / "run").glob("hang-*.txt")
    assert f"the newest waits of these ranks are in {report}" in finished.stdout
    assert len(re.findall(r"^rank [012] on ", report.read_text(), re.MULTILINE)) == 3
    assert len(re.findall(r"^ +\d+ +8 .* is in it  all_reduce$", report.read_text(), re.MULTILINE)) == 2


@long
def test_a_sleeping_first_rank_ends_the_run(train_with):
    finished = train_with("time.sleep(1000)", "run.step == 8 and rank == 0")
    assert_ended(finished, WAITING + r"rank 0 on \S+ is at step 7, outside of any collective")


@long
def test_ranks_in_different_collectives_end_the_run(train_with):
    finished = train_with("run.communicator.barrier()")
    assert_ended(finished, WAITING + "they are not in the same collective")


@long
def test_a_rank_that_hangs_while_it_saves_ends_the_run_after_a_longer_time(train_with):
    """The checkpoint of step 20 is written in the background; that of step 40 waits for it."""
    patch = "from lucid.training.checkpoints.store import Attempt; Attempt.save = lambda *_: time.sleep(1000)"
    finished = train_with("pass", "True", "train.watchdog_seconds=1", patch=patch)
    assert_ended(finished, r"rank 0 on \S+ is at step 39, saving a checkpoint, outside of any collective")


SLOW = f"""
def slowly(action, ranks):
    def act(*arguments, **options):
        time.sleep({2 * LIMIT} if int(os.environ["PMI_RANK"]) in ranks else 0)
        return action(*arguments, **options)
    return act
"""
SLOW_EVALUATION = SLOW + "trainer.evaluate = slowly(trainer.evaluate, [0])"
SLOW_SAVING = SLOW + "from lucid.training.checkpoints.store import Attempt; Attempt.save = slowly(Attempt.save, [0])"
SLOW_START = SLOW + "from lucid.data import Corpus; Corpus.verify = slowly(Corpus.verify, [0])"
SLOW_FIRST_STEP = (
    SLOW + "from lucid.training.micro_batches import MicroBatches as M; M.gradients = slowly(M.gradients, [2])"
)


@long
@pytest.mark.parametrize(
    ("patch", "steps"),
    [(SLOW_EVALUATION, 9), (SLOW_SAVING, 9), (SLOW_START, 9), (SLOW_FIRST_STEP, 1)],
    ids=["evaluation", "saving", "start", "first-step"],
)
def test_a_rank_that_is_slow_in_a_phase_that_may_take_long_does_not_end_the_run(train_with, patch, steps):
    finished = train_with("pass", "True", f"train.steps={steps}", "optimizer.warmup_steps=0", patch=patch)
    assert finished.returncode == 0, finished.stdout
    assert f"finished at step {steps} of {steps}" in finished.stdout


# `lucid train` on a rank that leaves its process id in a folder.
KNOWN_BY_ID = """
import os, pathlib, sys
from lucid.cli import main

pathlib.Path(sys.argv.pop(1), os.environ["PMI_RANK"]).write_text(str(os.getpid()))
main()
"""


@pytest.fixture
def train_suspended(mpiexec, run_file, tmp_path, losses):
    """A function that trains on three ranks, stops some of them for a while, and returns the losses of the run."""
    ids = tmp_path / "ids"
    ids.mkdir()

    def run(ranks, seconds):
        command = [mpiexec, "-n", "3", sys.executable, "-c", KNOWN_BY_ID, str(ids), "train", str(run_file), LIMITED]
        process = subprocess.Popen(
            [*command, f"run_folder={tmp_path / 'suspended'}"],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | FEW_CORES,
        )
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("step  8/"))
        pids = [int((ids / str(rank)).read_text()) for rank in ranks]
        for number, pause in ((signal.SIGSTOP, seconds), (signal.SIGCONT, 0)):
            for pid in pids:
                os.kill(pid, number)
            time.sleep(pause)
        rest, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, rest
        return losses(tmp_path / "suspended")

    return run


@long
def test_a_rank_stopped_for_less_than_the_limit_changes_nothing(train_suspended, train):
    assert train_suspended([1], LIMIT / 2) == train(3, "undisturbed")


@long
def test_a_job_suspended_as_a_whole_continues_afterwards(train_suspended, train):
    assert train_suspended([0, 1, 2], 3 * LIMIT) == train(3, "undisturbed")


@long
@pytest.mark.parametrize("launch", [("-m", "mpi4py"), ()], ids=["mpi4py", "plain"])
@pytest.mark.parametrize("fault", ["os._exit(0)", "os._exit(3)"])
def test_a_rank_that_exits_without_a_message_ends_all(train_with, fault, launch):
    """MPICH's launcher notices it. It takes exit code 0 for the job's, unless the rank has a parent."""
    finished = train_with(fault, launch=launch)
    assert "finished at step" not in finished.stdout


@long
@pytest.mark.parametrize("launch", [("-m", "mpi4py"), ()], ids=["mpi4py", "plain"])
@pytest.mark.parametrize(("fault", "code"), [("sys.exit(3)", 3), ("1 / 0", ExitCode.FAILED)])
def test_a_rank_that_fails_ends_all_at_once_without_the_watchdog(train_with, fault, code, launch):
    finished = train_with(fault, "run.step == 8 and rank == 1", "train.watchdog_seconds=1000", launch=launch)
    assert finished.returncode == code, finished.stdout
    assert "rank 1 of 3 failed at step 7, all ranks end:" in finished.stdout


# `lucid evaluate`, in which a rank stops.
EVALUATION = """
import os, signal
from lucid.cli import main
from lucid.training import evaluation

sums_of = evaluation._sums

def sums(*arguments):
    if os.environ["PMI_RANK"] == "1": os.kill(os.getpid(), signal.SIGSTOP)
    return sums_of(*arguments)

evaluation._sums = sums
main()
"""


@long
def test_a_stopped_rank_ends_an_evaluation_too(train, run_ranks, tmp_path):
    train(1, "run", "train.steps=6")
    arguments = ("evaluate", str(tmp_path / "run"), "--watchdog-seconds", str(LIMIT))
    finished = run_ranks(3, "-m", "mpi4py", "-c", EVALUATION, *arguments, seconds=SECONDS)
    assert_ended(finished, r"ranks wait in vain .*, evaluating, all ranks end: rank 1 on \S+ does not answer")


FUNNELED = "import mpi4py; mpi4py.rc.thread_level = 'funneled'; from lucid.cli import main; main()"


@long
def test_an_mpi_library_for_a_single_thread_is_refused(run_ranks, run_file):
    finished = run_ranks(2, "-c", FUNNELED, "train", str(run_file))
    assert finished.returncode == ExitCode.REFUSED, finished.stdout
    assert finished.stdout.count("set train.watchdog_seconds=0") == 1
    assert "Abort" not in finished.stdout


@long
def test_without_a_limit_there_is_no_watchdog(run_ranks, run_file):
    finished = run_ranks(2, "-c", FUNNELED, "train", str(run_file), "train.watchdog_seconds=0")
    assert finished.returncode == 0, finished.stdout
