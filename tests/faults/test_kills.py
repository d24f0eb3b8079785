"""A run that is killed repeatedly ends with the weights of an undisturbed run, bit for bit, and with its best ones.

The run has every feature whose state a stop could lose: a mixture of corpora, a masking rate that falls, a decay at the
end, the best checkpoint, kept checkpoints, and a probe. Each start has other ranks and draws anew what must not matter:
shards, recomputation, audits and a trace. `make test-long` kills 20 times, `make soak` 100 times:
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
from texts import made_up_text

from lucid.preparation import prepare
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
    *("optimizer.schedule=wsd", "optimizer.decay_steps=200", "data.mlm_probability=[0.3, 0.15]"),
    "train.keep_every=200",
)


def unimportant(draw, step):
    """Draw settings that change no weight, for a start after `step` steps."""
    first = step + draw.randint(1, 4)
    return (
        f"optimizer.sharded={draw.choice(['true', 'false'])}",
        f"train.recompute={draw.choice(['none', 'attention', 'layer'])}",
        f"train.audit_every={draw.choice(['null', '3'])}",
        f"train.trace={draw.choice(['null', f'[{first}, {first + 1}]'])}",
    )


@pytest.fixture
def inputs(corpus_folder, tmp_path):
    """The settings of a run on two corpora, with a probe."""
    text, labels, other = tmp_path / "other.txt", tmp_path / "labels.tsv", tmp_path / "other"
    text.write_text(made_up_text(60, seed=5), encoding="utf-8")
    prepare([text], other, tokenizer=corpus_folder / "tokenizer", held_out=0.2)
    labels.write_text("".join(f"{syllable} ne pi\t{syllable}\n" for _ in range(5) for syllable in ("ba", "zi")))
    return (
        f"data.path=[{{path: {corpus_folder}, weight: 2}}, {{path: {other}, weight: 1}}]",
        f"train.probe={labels}",
    )


@pytest.fixture
def start(mpiexec, run_file, inputs, tmp_path):
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
                *inputs,
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
    """Return the step and the digest of the newest and the best checkpoint, and of those that are kept."""
    folders = [find_model(run_folder, best=best) for best in (False, True)]
    kept = sorted(run_folder.glob("checkpoints/*-00000[24]00"))
    assert len(kept) == 2
    folders += kept
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
        process = start("killed", draw.choice([1, 2, 2, 4]), *unimportant(draw, step))
        step = kill_after_steps(process, draw.randint(1, 6), draw.choice)
        assert process.returncode != 0, f"kill {kill} of seed {seed} came too late: the run was at step {step}"

    process = start("killed", 2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "undisturbed"), f"seed {seed}"
