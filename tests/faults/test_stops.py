"""Ctrl-C and a closed terminal stop a run after saving it, however it was started; lost output does not stop it."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from launching import FEW_CORES
from terminal import CTRL_C, Terminal

from lucid.cli import _ended_by_signals
from lucid.distributed import StopRequest
from lucid.distributed.health import guard
from lucid.errors import EndedBySignal
from lucid.training.checkpoints.store import CheckpointStore

LUCID = (sys.executable, "-m", "lucid")
LONG = ("train.steps=100000", "train.checkpoint_every=100000")
SHORT = ("train.steps=3", "optimizer.warmup_steps=1")
VARIABLES = FEW_CORES | {"LUCID_KERNELS": "reference"}

also_long = pytest.mark.long


def saved_step(folder: Path) -> int:
    checkpoint, _ = CheckpointStore(folder / "checkpoints").newest()
    assert checkpoint is not None
    return checkpoint.state.step


STARTS = [
    pytest.param((*LUCID, "train"), id="train"),
    pytest.param((*LUCID, "launch", "-n", "2"), id="launch"),
    pytest.param(("mpiexec", "-n", "2", *LUCID, "train"), id="mpiexec", marks=also_long),
    pytest.param((*LUCID, "launch", "-n", "2", "--restarts", "3"), id="restarts", marks=also_long),
]


@pytest.mark.parametrize("start", STARTS)
def test_ctrl_c_saves_and_says_how_to_resume(start, mpiexec, run_file, tmp_path):
    start = [mpiexec if word == "mpiexec" else word for word in start]
    with Terminal(*start, str(run_file), *LONG, **VARIABLES) as terminal:
        terminal.read_until("MLM")
        terminal.press(CTRL_C)
        assert terminal.wait() == 130, terminal.output
    last = terminal.output.rpartition("stopped at step")[2].splitlines()
    step = saved_step(tmp_path / "run")
    assert last[0].strip().startswith(f"{step:,} of 100,000")
    assert last[1] == f"checkpoint  {tmp_path}/run/checkpoints/0001-{step:08}"
    resume = "run the same command again" if start[0] == mpiexec else f"{' '.join(start)} {run_file} {' '.join(LONG)}"
    assert f"resume      {resume}" in last
    assert terminal.output.count("a second Ctrl-C ends it at once") == 1
    assert not re.search("failed|Traceback|Abort|restart [0-9]", terminal.output)


@pytest.mark.parametrize("start", [pytest.param(*STARTS[0].values, id="train", marks=also_long), STARTS[1]])
def test_a_terminal_that_closes_leaves_a_saved_run(start, run_file, tmp_path):
    with Terminal(*start, str(run_file), *LONG, **VARIABLES) as terminal:
        terminal.read_until("MLM")
        terminal.close()
        assert terminal.wait() == 75
    assert saved_step(tmp_path / "run") > 0


@pytest.mark.parametrize("command", [("train",), pytest.param(("launch", "-n", "2"), marks=also_long)])
def test_a_run_that_nobody_listens_to_ends_as_if_somebody_did(command, run_file, tmp_path):
    def finished(redirection: str, name: str) -> int:
        words = [*LUCID, *command, str(run_file), *SHORT, f"run_folder={tmp_path / name}"]
        return subprocess.run(
            ["bash", "-c", f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}', "bash", *words],
            env=os.environ | VARIABLES,
            stdout=subprocess.DEVNULL,
            timeout=60,
            check=False,
        ).returncode

    assert finished("> /dev/full 2>&-", "full") == 0
    assert finished("2>&1 | true", "left") == 0
    assert saved_step(tmp_path / "full") == saved_step(tmp_path / "left") == 3


@pytest.mark.parametrize("command", [("plan",), pytest.param(("recipes",), marks=also_long)])
def test_a_reader_that_has_read_enough_ends_a_command_in_order(command, run_file):
    words = [*LUCID, *command, *([str(run_file)] if command == ("plan",) else [])]
    # The reader has gone before the first line comes.
    finished = subprocess.run(
        ["bash", "-c", '"$@" | exec true; exit ${PIPESTATUS[0]}', "bash", *words],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, b"")


def test_names_that_the_output_cannot_spell_do_not_end_a_run(run_file, tmp_path):
    finished = subprocess.run(
        [*LUCID, "train", str(run_file), *SHORT, "run_folder=runs/ü"],
        env=os.environ | VARIABLES | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "checkpoint  runs/\\xfc/checkpoints/0001-00000003\n" in finished.stdout


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
@pytest.mark.parametrize("command", [("doctor",), pytest.param(("bench", "step", "--seconds", "600"), marks=also_long)])
def test_a_signal_ends_another_command_with_a_line(command, number, name):
    with Terminal(*LUCID, *command, **VARIABLES) as terminal:
        program = Path(f"/proc/{terminal.process.pid}/status")
        # Python's own handler of SIGINT is there from the start: SIGTERM has none until lucid sets both.
        while not int(re.search(r"SigCgt:\s*(\w+)", program.read_text())[1], 16) >> (signal.SIGTERM - 1) & 1:
            assert terminal.process.poll() is None
        os.kill(terminal.process.pid, number)
        assert terminal.wait() == 128 + number
    assert terminal.output.splitlines()[-1] == f"lucid: ended by {name}"
    assert "Traceback" not in terminal.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_a_signal_asks_for_a_stop(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        # One Ctrl-C may come twice at once, from the terminal and from a launcher.
        for _ in range(2):
            os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.interrupted == (number == signal.SIGINT)
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_ends_at_once(monkeypatch):
    monkeypatch.setattr(guard, "_SECONDS_OF_ONE_PRESS", 0)
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(EndedBySignal, match="ended by Ctrl-C"):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_in_the_callback_of_a_library_ends_the_command(number):
    callback = ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(number))  # nobody can catch what it raises

    def command():
        with _ended_by_signals():
            callback()
            threading.Event().wait(60)

    with pytest.raises(SystemExit) as leaving:
        command()
    assert leaving.value.code == 128 + number


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_was_ignored_stays_ignored(number):
    """As nohup ignores SIGHUP, and a shell SIGINT for commands in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            assert not stop.requested
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
