"""A run that is killed repeatedly ends with the weights of an undisturbed run, bit for bit, and with its best ones.

Each start is on other ranks, sharded or not. `make test-long` kills 20 times, `make soak` 100 times:
`pytest tests/faults/test_kills.py --kills 100 --kill-seed 7`.
"""

import hashlib
import os
import random
import re
import signal
import subprocess
import sys

import pytest
from launching import FEW_CORES, TRAIN, descendants

from lucid.training.checkpoints.store import find_model

pytestmark = pytest.mark.long

# Several seconds for each kill, if the two cores are busy with other work too.
SECONDS_PER_KILL = 30

STEPS = 600
SETTINGS = (
    *("train.reduction=exact", "train.global_batch=8", "train.micro_batch=2", f"train.steps={STEPS}"),
    *("train.checkpoint_every=2", "train.check_replicas_every=2", "train.log_every=1", "data.sequence_length=16"),
    # At this rate the held-out loss goes up and down.
    *("train.keep_best=true", "train.evaluate_every=20", "train.evaluation_samples=16", "optimizer.learning_rate=0.03"),
)


@pytest.fixture
def start(mpiexec, run_file, tmp_path):
    """A function that starts the run on some ranks and returns the launcher's process."""
    processes = []

    def run(name, ranks, *overrides):
        process = subprocess.Popen(
            [
                mpiexec,
                "-n",
                str(ranks),
                sys.executable,
                *TRAIN,
                str(run_file),
                f"run_folder={tmp_path / name}",
                *SETTINGS,
                *overrides,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | FEW_CORES,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()


def weights_of(run_folder):
    """Return the step and the digest of the newest and of the best checkpoint."""
    folders = [find_model(run_folder, best=best) for best in (False, True)]
    return [
        (folder.name[-8:], hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())
        for folder in folders
    ]


def kill_after_steps(process, steps, choose_victim):
    """Kill a process of the run after it has printed this many more steps; return the last step that it printed.

    The processes are mpiexec, its proxy, and the ranks.
    """
    step = 0
    for line in process.stdout:
        if found := re.match(rf"step +(\d+)/{STEPS}", line):
            step = int(found[1])
            steps -= 1
            if steps == 0:
                os.kill(choose_victim([process.pid, *descendants(process.pid)]), signal.SIGKILL)
                break
    # Read the rest of the launcher's output: until then it could not end.
    process.communicate(timeout=60)
    return step


def pytest_generate_tests(metafunc):
    """The time limit grows with the number of kills."""
    kills = metafunc.config.getoption("--kills")
    metafunc.parametrize("kills", [pytest.param(kills, marks=pytest.mark.timeout(SECONDS_PER_KILL * (kills + 10)))])


def test_a_run_killed_at_random_steps_ends_with_the_weights_of_an_undisturbed_run(start, tmp_path, request, kills):
    seed = request.config.getoption("--kill-seed")
    draw = random.Random(seed)
    undisturbed = start("undisturbed", 2)
    output, _ = undisturbed.communicate(timeout=120)
    assert undisturbed.returncode == 0, output

    step = 0
    for kill in range(kills):
        process = start("killed", draw.choice([1, 2, 2, 4]), f"optimizer.sharded={draw.choice(['true', 'false'])}")
        step = kill_after_steps(process, draw.randint(1, 6), draw.choice)
        assert process.returncode != 0, f"kill {kill} of seed {seed} came too late: the run was at step {step}"

    process = start("killed", 2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "undisturbed"), f"seed {seed}"
