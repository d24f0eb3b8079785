"""If a rank ends without a message, its parent says which rank, what happened and where, and the job ends."""

import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launching import descendants

REPOSITORY = Path(__file__).parents[2]
PARENT = ("-m", "lucid.launch.rank_parent")
HOST = os.uname().nodename
SECONDS = 60

# One worker runs all of them: a parent counts the processes that the kernel has killed for lack of memory, and one of
# these tests makes the kernel kill one.
pytestmark = pytest.mark.xdist_group("the kernel's kills")

# Rank 1 runs ACTION at step 4, while the others are in a collective. Each process leaves a file in FOLDER.
PROGRAM = """
import mmap, os, pathlib, signal, sys, tempfile, threading
import numpy
from lucid.distributed import session

def is_killed_in_a_collective():
    def kill():
        while not communicator.status.current.collective:
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=kill).start()
    communicator.send_receive(numpy.zeros(25_000), numpy.zeros(25_000), peer=0).wait()

def reads_a_file_that_was_cut_short():
    with tempfile.TemporaryFile() as file:
        file.truncate(4096)
        mapped = mmap.mmap(file.fileno(), 4096)
        file.truncate(0)
        return mapped[0]

with session() as communicator:
    pathlib.Path({folder!r}, str(os.getpid())).touch()
    communicator.barrier()
    communicator.status.step = 4
    if communicator.rank == 1:
        {action}
    communicator.barrier()
sys.exit({code})
"""


@pytest.fixture
def run_ranks_with_parents(run_ranks, tmp_path):
    """A function that runs PROGRAM on two ranks or more, each with a parent."""

    def run(action="pass", code=0, ranks=2):
        program = PROGRAM.format(action=action, code=code, folder=str(tmp_path))
        return run_ranks(ranks, *PARENT, "-m", "mpi4py", "-c", program, seconds=SECONDS)

    return run


def start_rank_with_parent(program):
    """Start a parent whose rank runs `program`, without a launcher."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PMI", "OMPI", "SLURM"))}
    return subprocess.Popen(
        [sys.executable, *PARENT, "-c", program],
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("ranks", "action", "words"),
    [
        (3, "os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL at step 4"),
        (2, "os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV at step 4"),
        (2, "os.kill(os.getpid(), signal.SIGRTMIN + 1)", f"was killed by signal {signal.SIGRTMIN + 1} at step 4"),
        (3, "is_killed_in_a_collective()", r"was killed by SIGKILL in send_receive of 0\.2 MB \(wait \d+\) at step 4"),
        (2, "reads_a_file_that_was_cut_short()", r"was killed by SIGBUS \(a mapped file was cut short, .*\) at step 4"),
        (2, "os._exit(3)", "left with exit code 3 without a word at step 4"),
        (2, "os._exit(0)", "left with exit code 0 without a word at step 4"),
    ],
)
def test_a_rank_gone_without_a_word_ends_all_and_its_parent_says_where(run_ranks_with_parents, ranks, action, words):
    finished = run_ranks_with_parents(action, ranks=ranks)
    assert finished.returncode not in (0, 2, 75), finished.stdout
    assert len(re.findall(rf"rank 1 of {ranks} on {HOST} {words}, all ranks end", finished.stdout)) == 1, (
        finished.stdout
    )
    assert finished.stdout.count("all ranks end") == 1, finished.stdout


@pytest.mark.parametrize(
    ("ranks", "action", "code"), [(3, "sys.exit(3)", 3), (2, "1 / 0", 1), (2, "raise KeyboardInterrupt", 130)]
)
def test_the_parent_adds_nothing_to_the_message_of_its_rank(run_ranks_with_parents, ranks, action, code):
    finished = run_ranks_with_parents(action, ranks=ranks)
    assert finished.returncode == code, finished.stdout
    assert finished.stdout.count(f"rank 1 of {ranks}") == 1, finished.stdout
    assert finished.stdout.count("all ranks end") == 1, finished.stdout


@pytest.mark.parametrize("code", [0, 2, 75])
def test_the_parent_returns_the_exit_code_of_an_orderly_end_silently(run_ranks_with_parents, code):
    finished = run_ranks_with_parents(code=code)
    assert finished.returncode == code, finished.stdout
    assert finished.stdout == ""


def test_a_killed_parent_ends_its_rank_and_all_others(run_ranks_with_parents, tmp_path):
    finished = run_ranks_with_parents("os.kill(os.getppid(), signal.SIGKILL)", ranks=3)
    assert finished.returncode != 0, finished.stdout
    processes = [int(file.name) for file in tmp_path.iterdir()]
    assert len(processes) == 3
    for process in processes:
        wait_for_the_end_of(process)


def wait_for_the_end_of(process):
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([descriptor], [], [], SECONDS)
        assert ended, f"process {process} is still there"
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_parent_alone_reaches_the_rank(number):
    parent = start_rank_with_parent(
        f"import signal, sys; number = {number:d}; signal.pthread_sigmask(signal.SIG_BLOCK, [number]); "
        "print('ready', flush=True); signal.sigwait([number]); sys.exit(75)"
    )
    assert parent.stdout.readline() == "ready\n"
    # A signal that a terminal sends to the rank too does not end the parent.
    parent.send_signal(signal.SIGINT)
    parent.send_signal(number)
    _, errors = parent.communicate(timeout=SECONDS)
    assert (parent.returncode, errors) == (75, "")


def test_a_request_to_stop_too_early_or_too_late_does_not_kill_the_rank():
    program = (
        "import sys; from lucid.distributed import StopRequest; print('early', flush=True); input()\n"
        "with StopRequest() as stop: print(stop.requested, flush=True)\n"
        "print('late', flush=True); input(); sys.exit(75)"
    )
    parent = start_rank_with_parent(program)
    for moment, answer in (("early\n", "True\n"), ("late\n", "")):
        assert parent.stdout.readline() == moment
        parent.send_signal(signal.SIGUSR1)
        # SLURM sends it to every process of a step, not only to the parent.
        os.kill(descendants(parent.pid)[0], signal.SIGUSR1)
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == answer
    _, errors = parent.communicate(timeout=SECONDS)
    assert (parent.returncode, errors) == (75, "")


def test_a_rank_killed_before_it_has_found_the_others_is_reported_too():
    parent = start_rank_with_parent("import signal; print('ready', flush=True); signal.pause()")
    assert parent.stdout.readline() == "ready\n"
    parent.terminate()
    _, errors = parent.communicate(timeout=SECONDS)
    assert parent.returncode == 128 + signal.SIGTERM
    assert errors == f"a rank on {HOST} was killed by SIGTERM before it had found the others, all ranks end\n"


def test_the_parent_is_silent_about_a_command_that_needs_no_other_ranks():
    parent = start_rank_with_parent("import sys; print(input(), *sys.argv); sys.exit(5)")
    output, errors = parent.communicate("words\n", timeout=SECONDS)
    assert (parent.returncode, output, errors) == (5, "words -c\n", "")


def test_a_damaged_page_does_not_silence_the_parent():
    program = (
        "import os, signal; from lucid.launch.rank_status import PAGE_VARIABLE; "
        "os.ftruncate(int(os.environ[PAGE_VARIABLE].partition(':')[2]), 1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    parent = start_rank_with_parent(program)
    _, errors = parent.communicate(timeout=SECONDS)
    assert parent.returncode == 128 + signal.SIGKILL
    assert errors == f"a rank on {HOST} was killed by SIGKILL at an unknown step, all ranks end\n"


@pytest.fixture
def small_memory():
    """The folder of a control group that limits its processes to 200 MB of memory together."""
    groups = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    if "memory" in groups:
        parent, limit, swap = "/sys/fs/cgroup/memory" + groups["memory"], "memory.limit_in_bytes", "memory.swappiness"
    else:
        parent, limit, swap = "/sys/fs/cgroup" + groups.get("", ""), "memory.max", "memory.swap.max"
    folder = Path(parent) / f"lucid-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        (folder / limit).write_text("200000000")
        (folder / swap).write_text("0")
        yield folder
    except OSError as error:
        pytest.skip(f"memory cannot be limited here: {error}")
    finally:
        folder.rmdir()


def test_the_parent_reports_that_the_kernel_killed_a_rank_for_lack_of_memory(small_memory):
    program = (
        "import os; from lucid.distributed import connect; connect().status.step = 7; "
        f"open({str(small_memory / 'cgroup.procs')!r}, 'w').write(str(os.getpid())); "
        "print(sum(bytes([1]) * 1_000_000_000))"
    )
    parent = start_rank_with_parent(program)
    _, errors = parent.communicate(timeout=SECONDS)
    assert parent.returncode == 128 + signal.SIGKILL, errors
    assert f"rank 0 of 1 on {HOST} was killed by SIGKILL (probably for lack of memory: " in errors
    assert errors.endswith(") at step 7, all ranks end\n")


# Python runs this when it starts: rank 1 kills itself at step 5.
SITE = """
import os, signal
from lucid.distributed.communicators.status_writer import StatusWriter

def go(status, step):
    StatusWriter.step.fset(status, step)
    if step == 5 and status.current.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)

class Mortal(StatusWriter):
    step = property(StatusWriter.step.fget, go)

import lucid.distributed.communicators.mpi
lucid.distributed.communicators.mpi.StatusWriter = Mortal
"""


def test_a_training_run_whose_rank_is_killed_says_at_which_step(tmp_path, corpus_folder, mpiexec):
    model = {"vocab_size": 200, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = {
        "model": {**model, "intermediate_size": 32, "max_position_embeddings": 32},
        "data": {"path": str(corpus_folder), "sequence_length": 32},
        "train": {"steps": 50, "global_batch": 6},
        "run_folder": str(tmp_path / "run"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "sitecustomize.py").write_text(SITE)
    finished = subprocess.run(
        [REPOSITORY / "launch" / "mpirun.sh", "-n", "2", tmp_path / "run.yaml"],
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "PATH": f"{Path(mpiexec).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{tmp_path}:{REPOSITORY}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert finished.returncode not in (0, 2, 75), finished.stdout
    assert re.search(rf"rank 1 of 2 on {HOST} was killed by SIGKILL at step 5, all ranks end", finished.stdout), (
        finished.stdout
    )
