"""Preparation by several processes gives the bytes of one, and goes on after it was cut short."""

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import FEW_CORES, descendants

from lucid.data import Corpus
from lucid.errors import DataError, LaunchError
from lucid.preparation import prepare, stages

# Prepares a text in small portions, and prints the progress. Its arguments: text, output, number of processes.
PROGRAM = """
import signal, sys
from pathlib import Path
from lucid.errors import LucidError
from lucid.preparation import stages

# A shell makes its background jobs ignore this signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
stages.PIECE_BYTES, stages.TOKENS_PER_SHARD = 5000, 20000

def report(*progress):
    print(*progress, sep=":", flush=True)

try:
    text, output, processes = sys.argv[1:]
    stages.prepare([text], Path(output), vocab_size=200, held_out=0.1, processes=int(processes), report=report,
                   drop_duplicates=True)
except LucidError as error:
    sys.exit(f"refused: {error}")
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def program(*arguments: object) -> list[str]:
    return [sys.executable, "-c", PROGRAM, *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        program(*arguments), capture_output=True, text=True, timeout=120, env=os.environ | FEW_CORES, check=False
    )


@pytest.fixture(scope="module")
def undisturbed(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus that one process makes without interruption."""
    folder = tmp_path_factory.mktemp("undisturbed") / "corpus"
    finished = run(text_file, folder, 1)
    assert finished.returncode == 0, finished.stderr
    assert len(list(folder.glob("train-*.tokens.npy"))) > 1
    return folder


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_gives_the_same_bytes(
    processes: int, text_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    finished = run(text_file, tmp_path / "corpus", processes)
    assert finished.returncode == 0, finished.stderr
    assert contents(tmp_path / "corpus") == contents(undisturbed)


@pytest.mark.parametrize("ranks", [("-m", "lucid"), ("-m", "mpi4py", "-m", "lucid")], ids=["python", "mpi4py"])
def test_several_ranks_are_refused_in_one_sentence(
    run_ranks, ranks: tuple[str, ...], text_file: Path, tmp_path: Path
) -> None:
    finished = run_ranks(2, *ranks, "prepare", str(text_file), "--output", str(tmp_path / "corpus"), seconds=60)
    assert finished.returncode == LaunchError.exit_code
    assert finished.stdout.count("lucid: ") == finished.stdout.count("run it once, with --processes 2, ") == 1
    assert not (tmp_path / "corpus").exists()


def test_a_second_preparation_in_the_folder_is_refused_and_does_not_disturb_the_first(
    text_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "corpus"
    with started(text_file, output) as (process, _):
        total_when(process, "encoding", beyond=10_000)
        process.send_signal(signal.SIGSTOP)
        second = run(text_file, output, 1)
        assert second.returncode != 0
        assert f"refused: another preparation is at work in {output}" in second.stderr
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert contents(output) == contents(undisturbed)
    assert "nothing was done" in run(text_file, output, 1).stdout


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_preparation_cut_short_goes_on_where_it_was(
    number: signal.Signals, text_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "corpus"
    with started(text_file, output) as (process, workers):
        all_bytes = total_when(process, "encoding", beyond=10_000)
        process.send_signal(number)
        process.wait(timeout=30)
        for worker in workers:
            assert select.select([worker], [], [], 30)[0], "a worker outlived the process that started it"
    with pytest.raises(DataError, match="no manifest"):
        Corpus.open(output)
    again = run(text_file, output, 1)
    assert again.returncode == 0, again.stderr
    left = re.search(r"^encoding:0:(\d+)$", again.stdout, re.MULTILINE)
    assert left is not None
    assert int(left[1]) <= all_bytes - 10_000
    assert "sampling" not in again.stdout
    assert contents(output) == contents(undisturbed)


def test_a_killed_worker_ends_the_preparation_and_is_reported(
    text_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    with started(text_file, tmp_path / "corpus") as (process, workers):
        signal.pidfd_send_signal(workers[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert process.returncode != 0
        assert "a worker process was killed" in errors
    assert run(text_file, tmp_path / "corpus", 1).returncode == 0
    assert contents(tmp_path / "corpus") == contents(undisturbed)


class started:  # noqa: N801  # used as a function
    """Start a preparation by two workers, and enter the block with handles of them while they encode."""

    def __init__(self, text: Path, output: Path) -> None:
        self._process = subprocess.Popen(
            program(text, output, 2),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | FEW_CORES,
        )
        self._workers: list[int] = []

    def __enter__(self) -> tuple[subprocess.Popen[str], list[int]]:
        total_when(self._process, "encoding", beyond=0)
        processes = [pid for pid in descendants(self._process.pid) if not descendants(pid)]
        assert len(processes) == 2
        self._workers = [os.pidfd_open(pid) for pid in processes]
        return self._process, self._workers

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()
        for worker in self._workers:
            os.close(worker)


def total_when(process: subprocess.Popen[str], stage: str, beyond: int) -> int:
    """Read the progress until more than `beyond` bytes of the stage are done; return the total."""
    assert process.stdout is not None
    for line in process.stdout:
        name, done, total = line.rsplit(":", 2)
        if name == stage and int(done) > beyond:
            return int(total)
    pytest.fail("it ended before")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_reported_and_the_work_goes_on_once_there_is_room(
    text_file: Path, undisturbed: Path, small_disk: Path
) -> None:
    full = run(text_file, small_disk / "corpus", 2)
    assert full.returncode != 0
    assert re.search(r"refused: .* could not be written: No space left on device", full.stderr)
    with pytest.raises(DataError, match="no manifest"):
        Corpus.open(small_disk / "corpus")
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    finished = run(text_file, small_disk / "corpus", 1)
    assert finished.returncode == 0, finished.stderr
    assert contents(small_disk / "corpus") == contents(undisturbed)


def test_another_plan_starts_from_nothing(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "corpus"

    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "select", fail)
        with pytest.raises(KeyboardInterrupt):
            prepare([text_file], output, vocab_size=200, held_out=0.1)
    assert list(output.rglob("part-*"))
    prepare([text_file], output, vocab_size=100, held_out=0)
    prepare([text_file], tmp_path / "other", vocab_size=100, held_out=0)
    assert contents(output) == contents(tmp_path / "other")
