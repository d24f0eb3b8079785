"""lucid launch --restarts: real runs that are killed, stopped or lose a host, and what becomes of them."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hosts import until
from launching import FEW_CORES, descendants, rank_processes

from lucid.launch.processes import Process
from lucid.training.checkpoints.store import CheckpointStore, find_model

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).parents[2]
# Long enough that a run does not end before the test has answered a printed line with a signal.
LONG = ("train.steps=150", "train.checkpoint_every=40")
NEVER_FINITE = ("optimizer.learning_rate=1e30", "optimizer.warmup_steps=0", "train.max_skipped_steps=3")

# Replaces ssh: every host is this machine, and the second one is lost once the file $LOST exists.
# 198.51.100.0/24 is reserved for documentation: no machine has such an address.
HOSTS = ("198.51.100.1", "198.51.100.2")
NO_SSH = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
if [ "$1" = 198.51.100.2 ] && [ -e "$LOST" ]; then exit 255; fi
shift
exec sh -c "$*"
"""


class Supervised:
    """A run under launch/mpirun.sh, whose output a test reads line by line."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        environment = FEW_CORES | {"PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY)}
        self.process = subprocess.Popen(
            [REPOSITORY / "launch" / "mpirun.sh", *arguments],
            env=os.environ | environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""

    def read_until(self, fragment: str) -> None:
        """Read up to the line that contains `fragment`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if fragment in line:
                return
        pytest.fail(f"the run ended without {fragment!r}:\n{self.output}")

    def finish(self) -> int:
        """Read all output, and return the exit code."""
        assert self.process.stdout is not None
        self.output += self.process.stdout.read()
        return self.process.wait()

    def launcher(self) -> int:
        """Return the process that the supervisor started."""
        return descendants(self.process.pid)[0]

    def ranks(self) -> list[int]:
        return rank_processes(self.process.pid)


@pytest.fixture
def start(run_file):
    """A function that starts the run on two ranks, supervised; it kills the processes that are left at the end."""
    started = []

    def run(*arguments, options=("--restarts", "3", "--backoff", "0"), **variables):
        started.append(Supervised("-n", "2", *options, str(run_file), *arguments, **variables))
        return started[-1]

    yield run
    for supervised in started:
        supervised.process.kill()  # everything below it ends with it
        supervised.process.communicate()


@pytest.fixture(scope="module")
def undisturbed_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("undisturbed") / "run"


@pytest.fixture
def undisturbed(start, undisturbed_folder):
    """The folder of an undisturbed LONG run."""
    if not undisturbed_folder.exists():
        run = start(*LONG, f"run_folder={undisturbed_folder}")
        assert run.finish() == 0, run.output
        assert "lucid launch:" not in run.output
    return undisturbed_folder


def test_a_finished_run_that_is_started_again_is_finished(start, undisturbed):
    run = start(*LONG, f"run_folder={undisturbed}")
    assert run.finish() == 0, run.output
    assert "finished at step 150 of 150" in run.output
    assert "lucid launch:" not in run.output


def weights(run_folder):
    return (find_model(run_folder) / "model.safetensors").read_bytes()


@pytest.mark.parametrize("victim", ["rank", "rank's parent", "proxy", "launcher"])
def test_a_run_of_which_a_process_is_killed_ends_like_an_undisturbed_one(start, victim, undisturbed, losses, tmp_path):
    run = start(*LONG)
    run.read_until("step  50/150")
    processes = descendants(run.process.pid)
    launcher, proxy, parent = processes[:3]
    victims = {"rank": run.ranks()[0], "rank's parent": parent, "proxy": proxy, "launcher": launcher}
    os.kill(victims[victim], signal.SIGKILL)
    run.read_until("newest checkpoint: step 40; restart 1 of 3 in 0 s with 2 ranks")
    # The attempt that follows does not meet a rank of this one.
    assert not any(map(Process.read, processes))
    assert ("launcher was killed by SIGKILL" if victim == "launcher" else "failed with exit code") in run.output
    run.read_until("resumes from step 40")
    assert run.finish() == 0, run.output
    assert "finished at step 150 of 150" in run.output
    assert weights(tmp_path / "run") == weights(undisturbed)
    assert losses(tmp_path / "run") == losses(undisturbed)


def test_a_run_goes_on_while_the_processes_above_its_ranks_are_suspended(start, losses, tmp_path):
    run = start(*LONG)
    run.read_until("step  50/150")
    launcher, proxy = descendants(run.process.pid)[:2]
    suspended = (run.process.pid, launcher, proxy)
    for number in suspended:
        os.kill(number, signal.SIGSTOP)
    step = max(losses(tmp_path / "run"))
    until(lambda: max(losses(tmp_path / "run")) > step)
    for number in suspended:
        os.kill(number, signal.SIGCONT)
    assert run.finish() == 0, run.output
    assert run.output.count("finished at step 150 of 150") == 1
    assert "lucid launch:" not in run.output


def test_a_lost_host_means_fewer_ranks_and_the_same_curve(start, undisturbed, losses, tmp_path):
    (tmp_path / "hosts").write_text("# two of them\n" + "\n".join(HOSTS) + "\n")
    no_ssh, lost = tmp_path / "no_ssh", tmp_path / "lost"
    no_ssh.write_text(NO_SSH)
    no_ssh.chmod(0o755)
    options = ("--hostfile", str(tmp_path / "hosts"), "--restarts", "3", "--backoff", "0", "--min-ranks", "1")
    run = start(*LONG, options=options, HYDRA_LAUNCHER_EXEC=str(no_ssh), LOST=str(lost))
    run.read_until("on 2 ranks with 6 each")
    run.read_until("step  50/150")
    lost.touch()
    os.kill(run.ranks()[0], signal.SIGKILL)
    run.read_until(f"restart 1 of 3 in 0 s with 1 rank on 1 host ({HOSTS[1]} did not answer)")
    run.read_until("on 1 rank with 12 each")
    assert run.finish() == 0, run.output
    curve, expected = losses(tmp_path / "run"), losses(undisturbed)
    assert curve.keys() == expected.keys()
    np.testing.assert_allclose(list(curve.values()), [expected[step] for step in curve], rtol=1e-4)


def test_a_stop_without_a_request_to_the_supervisor_is_followed_by_a_restart(start):
    run = start(*LONG)
    run.read_until("step  50/150")
    os.kill(run.launcher(), signal.SIGTERM)
    run.read_until("lucid launch: stopped and saved with exit code 75")
    assert run.finish() == 0, run.output
    assert "finished at step 150 of 150" in run.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_requested_of_the_supervisor_is_the_end(start, number, losses, tmp_path):
    run = start(*LONG)
    run.read_until("step  50/150")
    run.process.send_signal(number)
    assert run.finish() == 75, run.output
    assert "lucid launch:" not in run.output
    checkpoint, _ = CheckpointStore(tmp_path / "run" / "checkpoints").newest()
    assert checkpoint is not None
    assert 50 <= checkpoint.state.step == max(losses(tmp_path / "run")) < 150


def test_a_stop_while_the_supervisor_waits_is_the_end(start):
    run = start(*NEVER_FINITE, options=("--restarts", "3", "--backoff", "60"))
    run.read_until("restart 1 of 3 in 60 s")
    run.process.send_signal(signal.SIGTERM)
    assert run.finish() == 1, run.output
    assert "lucid launch: asked to stop: no restart" in run.output


def test_the_supervisor_gives_up_a_run_that_fails_repeatedly_at_one_step(start):
    run = start(*NEVER_FINITE)
    assert run.finish() == 1, run.output
    assert run.output.count("the gradient was not finite 4 times in a row") == 2
    assert "gives up after 2 starts, the last of which brought no newer checkpoint" in run.output


def test_a_run_with_a_mistake_in_the_settings_is_not_started_again(start):
    run = start("train.global_batch=1")
    assert run.finish() == 2, run.output
    assert run.output.count("but 2 ranks take at least one of its sequences each") == 1
    assert "lucid launch:" not in run.output


def test_a_killed_supervisor_leaves_nothing_behind(start):
    run = start(*LONG)
    run.read_until("step  50/150")
    left = [os.pidfd_open(process) for process in (run.launcher(), *run.ranks())]
    run.process.kill()
    for process in left:
        ready, _, _ = select.select([process], [], [], 30)  # readable: it has ended
        assert ready
        os.close(process)
