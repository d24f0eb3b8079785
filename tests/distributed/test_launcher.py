"""launch/mpirun.sh: what it would run, what it runs, and what it says when it cannot."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lucid.distributed.topology import available_cores

SCRIPT = Path(__file__).parents[2] / "launch" / "mpirun.sh"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

# Stands for this Python, but for the training itself: that says what it was given and ends with 7.
PYTHON = """#!/bin/sh
case "$*" in
    *--gpus*) exec {python} "$@" ;;
    *keeper.py*) ;;
    *) exec {python} "$@" ;;
esac
echo "$* with $OMP_NUM_THREADS $OPENBLAS_NUM_THREADS $MKL_NUM_THREADS $NUMBA_NUM_THREADS"
exit 7
"""

VERSION_ONLY = "#!/bin/sh\necho '{version}'\n"


def executable(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def launch(tmp_path, mpiexec):
    """A function that runs the script beside a CONFIG named run.yaml."""
    (tmp_path / "run.yaml").touch()
    python = executable(tmp_path / "bin" / "python", PYTHON.format(python=sys.executable))
    executable(tmp_path / "bin" / "mpiexec", f'#!/bin/sh\nexec {mpiexec} "$@"\n')
    environment = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
    environment |= {"PYTHON": str(python), "PYTHONPATH": str(SCRIPT.parents[1])}

    def run(*arguments, **variables):
        return subprocess.run(
            [SCRIPT, *arguments],
            cwd=tmp_path,
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def planned(finished):
    """The threads per rank and the command that --dry-run printed."""
    assert finished.returncode == 0, finished.stderr
    threads, command = finished.stdout.splitlines()
    return int(threads.removeprefix("threads per rank: ")), shlex.split(command)


def option(command, name):
    return command[command.index(name) + 1] if name in command else None


def test_help_says_how(launch):
    finished = launch("--help")
    assert finished.returncode == 0
    assert finished.stdout.startswith("Usage: launch/mpirun.sh [-n N] [--hostfile F]")


def test_every_core_gets_a_rank_by_default(launch):
    threads, command = planned(launch("--dry-run", "run.yaml"))
    assert threads == 1
    assert int(option(command, "-n")) == available_cores()


@pytest.mark.parametrize("ranks", [1, 2, 3, 64])
def test_the_ranks_share_the_cores(launch, ranks):
    threads, command = planned(launch("--dry-run", "-n", str(ranks), "run.yaml"))
    assert threads == max(1, available_cores() // ranks)
    assert option(command, "-n") == str(ranks)


def test_ranks_that_take_all_cores_are_bound_and_no_others(launch):
    _, filling = planned(launch("--dry-run", "-n", "1", "run.yaml"))
    _, other = planned(launch("--dry-run", "-n", "1", "run.yaml", OMP_NUM_THREADS=str(available_cores() + 1)))
    assert option(filling, f"{SCRIPT.parent}/keeper.py") == "--bind"
    assert option(other, f"{SCRIPT.parent}/keeper.py") == "-m"


def test_more_ranks_than_cores_are_warned_of(launch):
    cores = available_cores()
    assert "take turns: start at most" in launch("--dry-run", "-n", str(cores + 1), "run.yaml").stderr
    assert launch("--dry-run", "-n", str(cores), "run.yaml").stderr == ""


def test_with_gpus_there_is_a_rank_for_each_that_is_visible(launch):
    _, command = planned(launch("--dry-run", "--gpus", "run.yaml", CUDA_VISIBLE_DEVICES="2,3,7"))
    assert option(command, "-n") == "3"
    assert option(command, f"{SCRIPT.parent}/keeper.py") == "--gpus"


def test_more_ranks_than_gpus_are_refused_with_one_sentence(launch):
    finished = launch("--gpus", "-n", "3", "run.yaml", CUDA_VISIBLE_DEVICES="0,1")
    assert finished.returncode == 2
    assert finished.stderr.count("has 2 GPUs that 3 ranks could use") == 1


def test_the_doctor_is_started_as_the_run_would_be(launch):
    _, run = planned(launch("--dry-run", "-n", "2", "run.yaml"))
    _, doctor = planned(launch("--dry-run", "-n", "2", "--doctor", "--folder", "runs"))
    assert doctor == [*run[: run.index("train")], "doctor", "--folder", "runs"]


def test_the_users_thread_count_is_kept(launch):
    finished = launch("-n", "2", "run.yaml", OMP_NUM_THREADS="5", MKL_NUM_THREADS="3")
    assert finished.stdout.count("with 5 5 3 5") == 2


def test_hosts_come_from_the_hostfile(launch, tmp_path):
    (tmp_path / "hosts").write_text("node1\n# node2 is away\n\nnode3\n")
    _, command = planned(launch("--dry-run", "--hostfile", "hosts", "-n", "4", "run.yaml"))
    assert (option(command, "-f"), option(command, "-n"), option(command, "-ppn")) == ("hosts", "4", "2")


def test_it_runs_lucid_with_a_keeper_on_every_rank_and_passes_the_exit_code_on(launch):
    finished = launch("-n", "2", "run.yaml", "train.steps=3", "data.folder=a b")
    command = "/keeper.py (--bind )?-m mpi4py -m lucid train run.yaml train.steps=3 data.folder=a b with"
    assert len(re.findall(f"{SCRIPT.parent}{command}", finished.stdout)) == 2
    assert finished.returncode == 7


OPEN_MPI = ["--oversubscribe", "--map-by", "ppr:64:node", "--bind-to", "none", "-x", "OMP_NUM_THREADS"]


def test_open_mpi_is_spoken_to_in_its_own_way(launch, tmp_path):
    executable(tmp_path / "bin" / "mpiexec", VERSION_ONLY.format(version="mpiexec (Open MPI) 5.0.8"))
    library = 'if [ "$3" = --mpi-lib-version ]; then echo "Open MPI v5.0.8"; exit; fi\n'
    shebang, rest = PYTHON.format(python=sys.executable).split("\n", 1)
    executable(tmp_path / "bin" / "python", f"{shebang}\n{library}{rest}")
    _, command = planned(launch("--dry-run", "-n", "64", "run.yaml"))
    assert command[3 : 3 + len(OPEN_MPI)] == OPEN_MPI
    assert ("--allow-run-as-root" in command) == (os.geteuid() == 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "CONFIG is missing"),
        (["-n"], "-n takes the number of ranks, got ''"),
        (["-n", "0", "run.yaml"], "-n takes the number of ranks, got '0'"),
        (["-n", "two", "run.yaml"], "-n takes the number of ranks, got 'two'"),
        (["-n", "99999999999999999999", "run.yaml"], "-n takes the number of ranks"),
        (["--hostfile", "nowhere", "run.yaml"], "the hostfile 'nowhere' cannot be read"),
        (["--hostfile", "/", "run.yaml"], "the hostfile '/' cannot be read"),
        (["--hostfile", "/dev/null", "run.yaml"], "the hostfile '/dev/null' names no host"),
        (["--host", "run.yaml"], "option --host is not known"),
        (["nothing.yaml"], "the configuration 'nothing.yaml' cannot be read"),
        (["--gpus", "run.yaml"], "this machine has no GPU for a rank"),
        (["--restarts", "3", "--doctor"], "--doctor is not started again"),
    ],
)
def test_a_wrong_call_is_refused_with_one_sentence(launch, arguments, message):
    finished = launch(*arguments, CUDA_VISIBLE_DEVICES="")
    assert (finished.returncode, finished.stderr.splitlines()[-1][:11]) == (2, "mpirun.sh: ")
    assert message in finished.stderr


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("OMP_NUM_THREADS", "abc", "OMP_NUM_THREADS takes the number of threads per rank, got 'abc'"),
        ("OMP_NUM_THREADS", "0", "OMP_NUM_THREADS takes the number of threads per rank, got '0'"),
        ("PYTHON", "/nowhere/python", "there is no '/nowhere/python', which PYTHON names"),
    ],
)
def test_a_wrong_variable_is_refused_with_one_sentence(launch, variable, value, message):
    finished = launch("-n", "1", "run.yaml", **{variable: value})
    assert (finished.returncode, finished.stderr) == (2, f"mpirun.sh: {message}\n")


def test_the_mpiexec_of_another_mpi_is_refused(launch, tmp_path):
    executable(tmp_path / "bin" / "mpiexec", VERSION_ONLY.format(version="mpiexec (OpenRTE) 4.1.4"))
    finished = launch("run.yaml")
    assert finished.returncode == 2
    assert "is of Open MPI, but mpi4py" in finished.stderr


def test_a_python_that_cannot_import_lucid_is_refused(launch, tmp_path):
    (tmp_path / "lucid.py").write_text("raise ImportError('no numpy here')")
    finished = launch("run.yaml")
    assert finished.returncode == 2
    assert finished.stderr.endswith("cannot import lucid: ImportError: no numpy here\n")
