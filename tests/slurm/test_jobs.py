"""Jobs from the templates in slurm/, submitted with launch/submit.sh to a real SLURM."""

import os
import re
import signal
import sys
from pathlib import Path

import pytest
from hosts import until
from launching import TRAIN

from lucid.launch.processes import Process
from lucid.training.checkpoints.store import find_model

# Long enough that a run does not end before the test has answered a printed line with a signal.
LONG = ("train.steps=200", "train.log_every=10")
SHORT = ("train.steps=6", "optimizer.warmup_steps=2")


@pytest.fixture(scope="module")
def undisturbed_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("undisturbed") / "run"


@pytest.fixture
def undisturbed(run_ranks, run_file, undisturbed_folder):
    """The folder of a LONG run on two ranks, without SLURM."""
    if not undisturbed_folder.exists():
        finished = run_ranks(2, *TRAIN, str(run_file), *LONG, f"run_folder={undisturbed_folder}", seconds=150)
        assert finished.returncode == 0, finished.stdout
    return undisturbed_folder


def weights(run_folder):
    return (find_model(run_folder) / "model.safetensors").read_bytes()


def test_a_preempted_job_goes_on_and_ends_with_the_weights_of_an_undisturbed_run(
    submit, undisturbed, run_file, tmp_path
):
    job = submit(str(run_file), "--nodes", "2", "--ranks-per-node", "1", *LONG)
    job.wait_for("step  10/200")
    assert job.shown("NodeList") == "node[1-2]"
    job.signal()
    job.wait_for("is queued again")
    assert "stopped at step" in job.output
    # srun kills a rank that ends after another one, and then does not say that all have saved.
    ended = "the run is saved|the ranks have ended"
    assert re.search(rf"slurm: ({ended}), and job {job.number} is queued again: it resumes by itself", job.output)
    assert job.wait() == "COMPLETED", job.output
    assert (job.shown("Restarts"), job.output.count("on 2 ranks with 6 each")) == ("1", 2)
    assert "start 2, on node[1-2]" in job.output
    # The second start is the run's second attempt: what an orphan of the first went on to write would be older.
    assert "checkpoints/0002-00000200" in job.output
    assert weights(tmp_path / "run") == weights(undisturbed)


def test_a_job_goes_on_with_the_nodes_that_are_free_and_ends_with_the_weights_of_an_undisturbed_run(
    cluster, submit, run_ranks, run_file, home, tmp_path, losses
):
    exact = (*LONG, "train.reduction=exact", "train.micro_batch=3")
    job = submit(str(run_file), "--nodes", "1-2", *exact)
    job.wait_for("step  10/200")
    # The second start is on the node that is left, with another launcher; the third is on both again.
    cluster.run("scontrol", "update", "NodeName=node2", "State=drain", "Reason=test")
    (home / "slurm" / "site.env").write_text(f"PYTHON={sys.executable}\nLAUNCHER=mpiexec\n")
    job.signal()
    job.wait_for("start 2, on node1\n")
    cluster.run("scontrol", "update", "NodeName=node2", "State=resume")
    until(lambda: job.output.count("resumes from step") == 1)
    job.signal()
    job.wait_for("start 3, on node[1-2]\n")
    assert job.wait() == "COMPLETED", job.output
    assert re.findall(r"on (\d) ranks? with", job.output) == ["2", "1", "2"]
    assert job.output.count("stopped at step") == 2
    # mpiexec's exit code says that all have saved.
    assert f"slurm: the run is saved, and job {job.number} is queued again" in job.output.partition("start 2, on")[2]
    undisturbed = run_ranks(1, *TRAIN, str(run_file), *exact, f"run_folder={tmp_path / 'undisturbed'}", seconds=150)
    assert undisturbed.returncode == 0, undisturbed.stdout
    assert losses(tmp_path / "run") == losses(tmp_path / "undisturbed")
    assert losses(tmp_path / "run").keys() == set(range(10, 201, 10))
    assert weights(tmp_path / "run") == weights(tmp_path / "undisturbed")


def test_a_signal_that_comes_before_the_ranks_is_not_lost(submit, run_file):
    job = submit(str(run_file), "--nodes", "2", "train.steps=4000")
    job.wait_for("start 1, on node[1-2]")
    job.signal()
    job.wait_for("is queued again")
    until(lambda: (job.shown("JobState"), job.shown("Restarts")) == ("PENDING", "1"))


def test_a_cancelled_job_saves_and_leaves_nothing_behind(cluster, submit, run_file):
    job = submit(str(run_file), "--nodes", "2", *LONG)
    job.wait_for("step  10/200")
    cluster.run("scancel", job.number)
    job.wait_for("stopped at step")
    assert job.wait() == "CANCELLED"
    said = f"slurm: the run is saved; to resume it: {sys.executable} -m lucid submit {run_file} --nodes 2"
    until(lambda: job.output.splitlines()[-1].startswith(said))
    until(lambda: cluster.processes() == [])
    assert job.shown("Restarts") == "0"


def test_a_killed_rank_fails_the_job(cluster, submit, run_file):
    job = submit(str(run_file), "--nodes", "2", *LONG)
    job.wait_for("step  10/200")
    ranks = cluster.ranks()
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    assert job.wait() == "FAILED", job.output
    assert "was killed by SIGKILL" in job.output
    assert job.shown("Restarts") == "0"
    until(lambda: cluster.processes() == [])


@pytest.mark.parametrize("program", ["srun", "slurmstepd"])
def test_no_rank_goes_on_when_a_process_of_slurm_is_killed(cluster, submit, run_file, program):
    job = submit(str(run_file), "--nodes", "2", *LONG, "train.watchdog_seconds=5")
    job.wait_for("step  10/200")
    victim = srun_of(cluster) if program == "srun" else step_daemon_of(cluster.ranks()[0])
    os.kill(victim, signal.SIGKILL)
    until(lambda: cluster.ranks() == [])
    if program == "srun":  # which waits for a killed slurmstepd until SLURM notices that
        assert job.wait() == "FAILED", job.output
        until(lambda: cluster.processes() == [])


def srun_of(cluster):
    """Return the first process of the srun of a job."""
    return min(number for number in cluster.processes() if name_of(number) == "srun")


def step_daemon_of(rank):
    """Return the process of SLURM that has started a rank's parent."""
    process = Process.read(rank)
    while name_of(process.number) != "slurmstepd":
        process = Process.read(process.parent)
    return process.number


def name_of(number):
    return Path(f"/proc/{number}/comm").read_text().strip()


def test_an_array_trains_once_for_each_seed_and_only_the_task_that_is_preempted_is_queued_again(
    submit, run_file, tmp_path, losses
):
    first, second = submit(str(run_file), "--sweep", "train.seed=1,2", *LONG, tasks=("_0", "_1"))
    second.wait_for("step  10/200")
    second.signal()
    second.wait_for(f"job {second.number} is queued again")
    assert (first.wait(), second.wait()) == ("COMPLETED", "COMPLETED"), first.output + second.output
    assert (first.shown("Restarts"), second.shown("Restarts")) == ("0", "1")
    curves = losses(tmp_path / "run-seed-1"), losses(tmp_path / "run-seed-2")
    assert curves[0].keys() == curves[1].keys() == set(range(10, 201, 10))
    assert curves[0] != curves[1]


def test_ranks_that_do_not_find_each_other_are_refused_with_advice(submit, run_file):
    job = submit(str(run_file), "--nodes", "2", launcher="srun --mpi=none")
    assert job.wait() == "FAILED"
    assert job.output.count("(srun) started 2 processes, but MPI sees 1") == 1
    assert "srun --mpi=pmi2" in job.output
    assert "Traceback" not in job.output


def test_a_corpus_is_prepared_and_a_model_evaluated(submit, text_file, undisturbed, tmp_path):
    options = ("--vocab-size", "200", "--held-out", "0.1")
    job = submit("--threads-per-rank", "2", "prepare", str(text_file), "--output", "made", *options)
    assert job.wait() == "COMPLETED", job.output
    job = submit("--nodes", "2", "evaluate", str(undisturbed), "--data", "made")
    assert job.wait() == "COMPLETED", job.output
    assert job.output.count("held out: MLM loss") == 1


def test_the_doctor_says_what_the_nodes_of_a_job_can_do(submit):
    job = submit("--nodes", "2", "doctor")
    assert job.wait() == "COMPLETED", job.output
    assert re.search(r"hosts +2 hosts, 2 ranks", job.output)
    assert re.search(r"all-reduce +64 MB in", job.output)


def test_gpu_nodes_get_a_rank_for_each_gpu(submit, run_file):
    options = ("--nodes", "2", "--gpus-per-node", "1", "--threads-per-rank", "1")
    # SLURM's GPUs are plain files here, so the run computes on the CPU.
    job = submit(str(run_file), *options, *SHORT, "train.device=cpu")
    assert job.wait() == "COMPLETED", job.output
    assert "on 2 ranks with 6 each" in job.output
    assert job.shown("TresPerNode") == "gres:gpu:1"
