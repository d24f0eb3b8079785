"""The job scripts for PBS and LSF, run by bash as these schedulers would run them: this machine is the only node."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hosts import until
from launching import FEW_CORES, descendants, executable

from lucid.training.checkpoints.store import find_model

SCRIPTS = Path(__file__).parents[2] / "jobs"
# Commands of PBS.
QSTAT = """#!/bin/sh
echo "Job Id: $2"
echo "    Resource_List.walltime = 24:00:00"
"""
QSUB = """#!/bin/sh
echo "submits $1 in $PWD"
"""
# The limit for a run of a few seconds on a busy machine.
SECONDS = 150
SETTINGS = ("train.steps=200", "train.log_every=10", "train.reduction=exact", "train.micro_batch=3")


class Job:
    """A job script that runs on a node with room for `ranks` ranks, and writes its output to a file."""

    def __init__(self, script: Path, ranks: int, run_file: Path) -> None:
        folder = run_file.parent
        self.log, nodes = folder / "job.log", folder / "nodes"
        nodes.write_text("localhost\n" * ranks)
        of_scheduler = {
            ".pbs": {"PBS_O_WORKDIR": str(folder), "PBS_JOBID": "7.server", "PBS_NODEFILE": str(nodes)},
            ".lsf": {"LSB_JOBID": "7", "LSB_DJOB_HOSTFILE": str(nodes)},
        }
        # These tests do not depend on kernels, and the reference kernels load fast.
        ours = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "LUCID_KERNELS": "reference"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [shutil.which("bash"), script],
                env=os.environ | of_scheduler[script.suffix] | ours | FEW_CORES,
                cwd="/" if script.suffix == ".pbs" else folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def signal(self) -> None:
        """Send SIGUSR1 to all processes, as both schedulers do."""
        for process in (self.process.pid, *descendants(self.process.pid)):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGUSR1)

    def wait(self) -> int:
        return self.process.wait(SECONDS)


@pytest.fixture
def start(run_file, tmp_path):
    """A function that starts an edited job script."""
    for name, text in (
        ("qstat", QSTAT),
        ("qsub", QSUB),
        ("lucid", f'#!/bin/sh\nexec {sys.executable} -m lucid "$@"\n'),
    ):
        executable(tmp_path / "bin" / name, text)
    jobs = []

    def started(name, ranks):
        text = (SCRIPTS / name).read_text()
        (line,) = [line for line in text.splitlines() if line.startswith("run=")]
        script = tmp_path / name
        script.write_text(text.replace(line, f"run=({run_file.name} {' '.join(SETTINGS)})"))
        jobs.append(Job(script, ranks, run_file))
        return jobs[-1]

    yield started
    for job in jobs:
        for process in (job.process.pid, *descendants(job.process.pid)):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "last_words"),
    [
        ("pretrain.pbs", "pbs: the run is saved, and goes on in the next job:\nsubmits {script} in {folder}\n"),
        ("pretrain.lsf", "lsf: the run is saved, and job 7 is queued again: it resumes by itself\n"),
    ],
)
def test_a_job_saves_is_queued_again_and_goes_on_with_other_ranks(start, tmp_path, losses, name, last_words):
    job = start(name, 3)
    until(lambda: "step  10/200" in job.output or job.process.poll() is not None)
    if name == "pretrain.pbs":
        command = next(words for words in map(command_of, descendants(job.process.pid)) if words[0] == "timeout")
        assert command[:4] == ["timeout", "--preserve-status", "--signal=USR1", str(24 * 3600 - 120)]
    job.signal()
    assert job.wait() == 75, job.output
    assert job.output.endswith(last_words.format(script=tmp_path / name, folder=tmp_path))
    assert ": 2 ranks where there is room for 3\n" in job.output
    assert "lucid launch -n" not in job.output  # the script says how to resume
    job = start(name, 1)
    assert job.wait() == 0, job.output
    assert "resumes from step" in job.output
    assert losses(tmp_path / "run").keys() == set(range(10, 201, 10))
    assert find_model(tmp_path / "run").name == "0002-00000200"


def command_of(process: int) -> list[str]:
    return Path(f"/proc/{process}/cmdline").read_text().split("\0") or [""]


@pytest.mark.parametrize("name", ["pretrain.pbs", "pretrain.lsf"])
def test_a_job_with_wrong_settings_starts_no_ranks_and_is_not_queued_again(start, run_file, name):
    run_file.write_text("run_folder: run\n")
    job = start(name, 2)
    assert job.wait() == 2, job.output
    assert "run.yaml" in job.output
    assert "queued again" not in job.output
    assert "submits" not in job.output
