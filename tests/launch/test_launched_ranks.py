"""lucid launch as a process: what its ranks are given, how signals reach them, and its messages and exit codes."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from launching import FEW_CORES, executable

from lucid.launch.limits import available_cores
from lucid.launch.mpirun import Surroundings, plan
from lucid.launch.options import Options
from lucid.launch.placement import THREAD_VARIABLES

SCRIPT = Path(__file__).parents[2] / "launch" / "mpirun.sh"
PARENT = "lucid.launch.rank_parent"

# Replaces the Python of a rank and its parent: runs $RANK, or Python if it is empty.
RANK = """#!/bin/sh
[ -z "$RANK" ] || eval "$RANK"
exec {python} "$@"
"""
# Replaces mpiexec: runs the program above in place of Python.
MPIEXEC = """#!/bin/bash
words=()
for word; do
    [[ $word == {python} ]] && word={rank}
    words+=("$word")
done
exec {mpiexec} "${{words[@]}}"
"""
# The last digits of a mask are the signals 1 to 16.
SAYS_WHAT_IT_IGNORES = r'sed -n "s/SigIgn:.*\(....\)$/ignores \1/p" /proc/$$/status'
SAYS_WHAT_IT_WAS_GIVEN = f"""
echo "$* with $OMP_NUM_THREADS $NUMBA_NUM_THREADS"
{SAYS_WHAT_IT_IGNORES}
exit 7
"""
STOPS_WHEN_ASKED = 'trap "echo stops; exit 75" USR1; echo ready; while :; do sleep 1 & wait $!; done'


@pytest.fixture
def start(folder, mpiexec):
    """A function that starts the script in an environment with a replaced mpiexec."""
    python = folder / "bin" / "python"
    rank = executable(folder / "bin" / "rank", RANK.format(python=python))
    executable(folder / "bin" / "mpiexec", MPIEXEC.format(mpiexec=mpiexec, python=python, rank=rank))
    python.symlink_to(sys.executable)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", folder)
    (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    unset = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}

    def run(*arguments, **variables):
        return subprocess.Popen(
            [SCRIPT, *arguments],
            env=unset | {"PYTHON": str(python), "PYTHONPATH": str(SCRIPT.parents[1])} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
        )

    return run


@pytest.fixture
def finish(start):
    """A function that runs the script to its end, and returns its exit code, output and errors."""

    def run(*arguments, **variables):
        process = start(*arguments, **variables)
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    return run


def test_a_run_on_two_ranks_trains_to_its_end_whatever_modules_the_working_folder_has(finish, folder, run_file):
    for name in (*sys.stdlib_module_names, "coverage", "mpi4py", "numba", "numpy", "tokenizers", "yaml"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the working folder was imported')")
    settings = ("train.steps=2", "optimizer.warmup_steps=1")
    code, output, errors = finish("-n", "2", str(run_file), *settings, **FEW_CORES, LUCID_KERNELS="reference")
    assert code == 0, errors
    assert "on 2 ranks with 6 each" in output
    assert "finished at step 2 of 2" in output


def test_dry_run_prints_the_command_for_a_shell_and_runs_nothing(finish, folder):
    (folder / "it's a.yaml").touch()
    settings = ("it's a.yaml", "a=b c", "b=$(touch made)", "")
    code, output, errors = finish("--dry-run", "-n", "1", *settings)
    assert (code, errors) == (0, "")
    threads, command = output.splitlines()
    assert threads == f"threads per rank: {available_cores()}"
    there = Surroundings(f"{folder}/bin/python", f"{folder}/bin/mpiexec", "MPICH", available_cores())
    assert tuple(shlex.split(command)) == plan(Options("train", settings, ranks=1), there, {}).command


def test_ranks_that_take_turns_cause_a_warning(finish):
    code, _, errors = finish("--dry-run", "-n", str(available_cores() + 1), "run.yaml")
    assert code == 0
    assert "take turns: start at most" in errors
    assert finish("--dry-run", "-n", str(available_cores()), "run.yaml")[2] == ""


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        (
            ("--gpus", "run.yaml"),
            {"CUDA_VISIBLE_DEVICES": ""},
            "lucid launch: --gpus: this machine has no GPU",
        ),
        (
            ("--hostfile", "/dev/null", "run.yaml"),
            {},
            "lucid launch: the hostfile '/dev/null' cannot be read: ",
        ),
    ],
)
def test_an_impossible_start_is_refused_with_one_sentence(finish, arguments, variables, sentence):
    code, output, errors = finish(*arguments, **variables)
    assert (code, output) == (2, "")
    assert errors.startswith(sentence)
    assert errors.count("\n") == 1


def test_the_exit_code_and_the_signals_of_the_user_are_passed_on(finish, folder, mpiexec):
    # A shell may have started this process to ignore some, as nohup does.
    plain = subprocess.check_output([mpiexec, "-n", "1", "sh", "-c", SAYS_WHAT_IT_IGNORES], text=True)
    assert plain.startswith("ignores ")
    code, output, _ = finish("-n", "2", "run.yaml", "a=b c", OMP_NUM_THREADS="5", RANK=SAYS_WHAT_IT_WAS_GIVEN)
    assert code == 7
    assert output.count(f"-P -m {PARENT} -P -m mpi4py -m lucid train run.yaml a=b c with 5 5\n") == 2
    assert output.count(plain) == 2


def test_a_signal_reaches_the_ranks(start):
    process = start("-n", "2", "run.yaml", RANK=STOPS_WHEN_ASKED)
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (75, "stops\n" * 2)


def test_a_second_ctrl_c_ends_ranks_that_do_not_stop(start):
    process = start("-n", "2", "run.yaml", RANK="trap '' USR1; echo ready; sleep 600")
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    process.send_signal(signal.SIGINT)
    assert "a second Ctrl-C ends it at once" in process.stderr.readline()
    while process.poll() is None:  # the first ones may count as the same press
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_one_ctrl_c_that_arrives_twice_still_saves():
    rank = (
        "requests=0; trap 'requests=$((requests + 1)); [ $requests = 2 ] && exit 3; kill -INT $PPID' USR1; "
        "kill -INT $PPID; while :; do sleep 1 & wait $!; done"
    )
    program = (
        "import sys; from lucid.launch import attempt; attempt._SECONDS_OF_ONE_PRESS = 60; attempt.block_signals(); "
        f"sys.exit(attempt.run(['sh', '-c', {rank!r}], {{}}, [], True).status)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 3
    assert finished.stderr.count("the run saves and stops") == 1


def test_the_exit_code_after_ctrl_c_tells_whether_the_run_was_saved(start):
    process = start("-n", "2", "run.yaml", RANK="trap 'exit 3' USR1; echo ready; while :; do sleep 1 & wait $!; done")
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_that_comes_while_hosts_are_checked_keeps_the_ranks_from_starting(number, code):
    program = (
        "import os, sys; from lucid.launch import attempt; attempt.block_signals(); "
        f"os.kill(os.getpid(), {number:d}); sys.exit(attempt.run(['touch', 'made'], {{}}, [], True).status)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == code
    assert finished.stderr == "lucid launch: asked to stop before the ranks had started\n"
    assert not Path("made").exists()


def test_the_first_ctrl_c_ends_what_cannot_save(start):
    process = start("-n", "1", "--doctor", RANK="echo ready; sleep 600")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_output_that_nobody_reads_does_not_end_the_ranks(start, folder):
    """MPICH's launcher would end them all."""
    process = start(
        "-n", "1", "run.yaml", RANK=f"echo one; read _ < {folder}/go; echo two; echo > {folder}/done; exit 7"
    )
    os.mkfifo(folder / "go")
    assert process.stdout.readline() == "one\n"
    process.stdout.close()
    (folder / "go").write_text("\n")
    assert process.wait(timeout=60) == 7
    assert (folder / "done").exists()
    process.stderr.close()


def test_ranks_are_started_on_the_hosts_of_the_file(finish, folder):
    (folder / "hosts").write_text("localhost\n")
    code, output, errors = finish("--hostfile", "hosts", "-n", "2", "run.yaml", RANK="echo here; exit 0")
    assert (code, output) == (0, "here\n" * 2), errors


def test_more_ranks_than_gpus_are_refused_with_one_sentence(finish):
    code, _, errors = finish("--gpus", "-n", "3", "run.yaml", CUDA_VISIBLE_DEVICES="0,1")
    assert code == 2
    assert errors.count("has 2 usable GPUs for 3 ranks") == 1


# What shells, launchers or SLURM read for themselves.
HOSTILE = (
    *("", " ", "a b", " c ", "\n", "a\nb", "\t", "'", '"', "\\", "\\n", "a\\ b", "\x01", "\udcff", "é", "#", "!x", "~"),
    *(";touch made", "&& touch made", "|touch made", "> made", "$(touch made)", "`touch made`", "$HOME", "%HOME%"),
    *("*", "?", "[a]", "{a,b}", "%d%s%n", "=", "a=b", "a:b", "::", "@hosts", "x" * 100_000),
    *("-n", "-np", "-configfile", "-env", "-genv", "-f", "-hosts", "--host", "-x", "-launcher", "--help", "-", "--"),
)


def test_arguments_and_variables_arrive_as_they_are_whatever_they_contain(finish, folder):
    """A rank gets what the user has written, and nothing of it is run."""
    prints_all = r"""printf '%s\0' "$@"; env -0; exit 7"""
    variables = {f"HOSTILE_{number}": text for number, text in enumerate(HOSTILE)}
    code, output, errors = finish("-n", "1", "--", "run.yaml", *HOSTILE, RANK=prints_all, **variables)
    assert code == 2
    assert errors.startswith("lucid launch: option -n is not known"), errors
    # The doctor has options of its own, and so gets them all.
    code, output, errors = finish("-n", "1", "--doctor", "--", *HOSTILE, RANK=prints_all, **variables)
    assert code == 7, errors
    words = output.removesuffix("\0").split("\0")
    start = words.index("doctor") + 1
    assert tuple(words[start : start + len(HOSTILE)]) == HOSTILE
    assert set(words) >= {f"{name}={text}" for name, text in variables.items()}
    assert not (folder / "made").exists()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("OMP_NUM_THREADS", "abc", " launch: OMP_NUM_THREADS takes the number of threads per rank, got 'abc'"),
        ("PYTHON", "/nowhere/python", ": there is no '/nowhere/python', which PYTHON names"),
        ("PYTHON", "fail", ": there is no 'fail', which PYTHON names"),
    ],
)
def test_a_wrong_variable_is_refused_with_one_sentence(finish, variable, value, message):
    assert finish("-n", "1", "run.yaml", **{variable: value}) == (2, "", f"lucid{message}\n")
