"""A damaged corpus, on the real command line: found when a run starts, or when the corpus changes during a run."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from launching import FEW_CORES, TRAIN

from lucid.errors import DataError
from lucid.preparation import prepare
from lucid.training.checkpoints.store import CheckpointStore

SHARD = "train-00000.tokens.npy"


@pytest.fixture
def corpus(corpus_folder: Path, tmp_path: Path) -> Path:
    """A copy of the corpus that may be changed."""
    return shutil.copytree(corpus_folder, tmp_path / "corpus")


@pytest.fixture
def overrides(corpus: Path) -> list[str]:
    """Settings of a run on that corpus, far too long to end by itself, with a checkpoint every second step."""
    return [f"data.path={corpus}", "train.steps=1000000", "train.checkpoint_every=2"]


@pytest.fixture
def command(mpiexec: str, run_file: Path, overrides: list[str]) -> list[str]:
    """The command of that run on two ranks: a rank that finds the change ends all."""
    return [mpiexec, "-n", "2", sys.executable, *TRAIN, str(run_file), *overrides]


def flip_a_bit(path: Path) -> None:
    """Write into the file in place, without changing its size."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def cut_short(path: Path) -> None:
    """Cut the last byte off: the last page stays mapped, so that this test cannot end by SIGBUS."""
    os.truncate(path, path.stat().st_size - 1)


def replace(path: Path) -> None:
    """Replace the file by another one, as copying tools do."""
    path.with_suffix(".new").write_bytes(path.read_bytes())
    path.with_suffix(".new").replace(path)


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a run; enter the block when it has taken three steps; leave nothing running."""
    environment = os.environ | FEW_CORES
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            seen = ""
            while "step       3/" not in seen:
                line = process.stdout.readline()
                assert line, f"the run ended early:\n{seen}"
                seen += line
            yield process
        finally:
            process.kill()


def assert_corpus_error(process: subprocess.Popen[str], path: Path) -> None:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == DataError.exit_code, output
    assert re.search(rf"{path}\S* was (written to|removed) while it was being read: the corpus has changed", output)
    assert "resumes from its last checkpoint" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("change", [cut_short, replace], ids=lambda change: change.__name__)
def test_a_corpus_changed_during_a_run_ends_it(
    change: Callable[[Path], None], command: list[str], corpus: Path
) -> None:
    with running(command) as process:
        change(corpus / SHARD)
        assert_corpus_error(process, corpus / SHARD)


def test_a_run_resumes_when_its_corpus_is_restored(
    command: list[str], overrides: list[str], train_until, corpus: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    with running(command) as process:
        flip_a_bit(corpus / SHARD)
        assert_corpus_error(process, corpus / SHARD)
    shutil.copyfile(corpus_folder / SHARD, corpus / SHARD)
    reached = CheckpointStore(tmp_path / "run/checkpoints").newest()[0].state.step
    assert f"resumes from step {reached}" in train_until(2, "run", reached + 2, *overrides)


def test_a_corpus_prepared_anew_during_a_run_ends_it(command: list[str], corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("One is here. Two is here.\n\nThree is there. Four is there.")
    with running(command) as process:
        prepare([tmp_path / "other.txt"], corpus, vocab_size=200, held_out=0, overwrite=True)
        assert_corpus_error(process, corpus)


def test_a_flipped_bit_is_found_by_its_checksum_at_the_start(
    on_ranks, run_file: Path, overrides: list[str], corpus: Path
) -> None:
    flip_a_bit(corpus / SHARD)
    finished = on_ranks(2, "train", run_file, *overrides)
    assert finished.returncode == DataError.exit_code, finished.stdout
    assert f"{corpus / SHARD} was altered: its checksum differs" in finished.stdout
    assert "Traceback" not in finished.stdout
    assert finished.stdout.count("lucid: ") == 1


def test_fewer_documents_than_ranks_and_a_batch_larger_than_an_epoch_train(
    on_ranks, run_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "two.txt").write_text("One is here. Two is here.\n\nThree is there. Four is there.")
    prepare([tmp_path / "two.txt"], tmp_path / "small", vocab_size=200, held_out=0)
    settings = (f"data.path={tmp_path / 'small'}", "train.steps=6", "train.checkpoint_every=2", "train.global_batch=15")
    finished = on_ranks(3, "train", run_file, *settings)
    assert finished.returncode == 0, finished.stdout
    assert "finished at step 6 of 6" in finished.stdout
