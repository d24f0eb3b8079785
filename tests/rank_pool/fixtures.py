"""Fixtures that have something done on several ranks. The tests that use the pool share one, in one xdist worker."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launching import FEW_CORES, TRAIN
from small_run import write_settings

from rank_pool.commands import command, train_until_step
from rank_pool.pool import RankPool, Result

Finished = subprocess.CompletedProcess[str]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests that use the pool together where several workers divide the tests: it takes all cores."""
    for item in items:
        if "rank_pool" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ranks"))


@pytest.fixture(scope="session")
def rank_pool(mpiexec: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    """Up to four ranks that do one job after the other."""
    pool = RankPool(mpiexec, tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def on_ranks(rank_pool: RankPool) -> Callable[..., Finished]:
    """A function that runs `lucid ARGUMENTS` on some ranks of the pool, and returns what a finished mpiexec would.

    All ranks have to leave with the same exit code. Their outputs follow one another in the order of ranks. Each rank
    runs the command inside the context that `within` makes: a function at the top of a module, or a partial of one.
    """

    def run(ranks: int, *arguments: object, seconds: float = 60, **named: Any) -> Finished:
        return _finished(rank_pool.run(ranks, command, [*map(str, arguments)], seconds=seconds, **named))

    return run


@pytest.fixture
def losses() -> Callable[[Path], dict[int, float]]:
    """A function that returns the loss of each step that a run has logged."""

    def read(run_folder: Path) -> dict[int, float]:
        lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    return read


@pytest.fixture
def train(
    on_ranks: Callable[..., Finished], run_file: Path, tmp_path: Path, losses: Callable[[Path], dict[int, float]]
) -> Callable[..., dict[int, float]]:
    """A function that trains the run on some ranks into a folder of its own, and returns the loss of each step."""

    def run(ranks: int, name: str, *overrides: str, **named: Any) -> dict[int, float]:
        finished = on_ranks(ranks, "train", run_file, f"run_folder={tmp_path / name}", *overrides, **named)
        assert finished.returncode == 0, finished.stdout
        return losses(tmp_path / name)

    return run


@pytest.fixture(scope="session")
def undisturbed(
    on_ranks: Callable[..., Finished], corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A function that trains the run on some ranks, once for all tests, and returns its folder, which nobody alters.

    It keeps all its checkpoints.
    """
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_settings(folder / "run.yaml", corpus_folder, folder / "none")

    @functools.cache
    def run(ranks: int, *overrides: str) -> Path:
        run_folder = folder / f"run{len(list(folder.iterdir()))}"
        settings = (f"run_folder={run_folder}", "train.keep_checkpoints=99", *overrides)
        finished = on_ranks(ranks, "train", config, *settings)
        assert finished.returncode == 0, finished.stdout
        return run_folder

    return run


@pytest.fixture
def train_until(rank_pool: RankPool, run_file: Path, tmp_path: Path) -> Callable[..., str]:
    """A function that trains the run on some ranks, stops it after a step, and returns what it printed."""

    def run(ranks: int, name: str, step: int, *overrides: str) -> str:
        arguments = [f"run_folder={tmp_path / name}", *overrides]
        finished = _finished(rank_pool.run(ranks, train_until_step, step, str(run_file), arguments))
        assert finished.returncode == 75, finished.stdout
        assert f"stopped at step {step} of" in finished.stdout
        return finished.stdout

    return run


@pytest.fixture
def train_until_signal(mpiexec: str, run_file: Path, tmp_path: Path) -> Callable[..., str]:
    """A function that starts the run under mpiexec, stops it by a signal after a step, and returns what it printed."""

    def run(ranks: int, name: str, step: int, number: signal.Signals, *overrides: str) -> str:
        overrides = (f"run_folder={tmp_path / name}", *overrides)
        process = subprocess.Popen(
            [mpiexec, "-n", str(ranks), sys.executable, *TRAIN, str(run_file), *overrides],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | FEW_CORES,
        )
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if re.match(rf"step +{step}/", line):
                process.send_signal(number)
                break
        rest, _ = process.communicate(timeout=60)
        output = "".join(lines) + rest
        assert process.returncode == 75, output
        return output

    return run


def _finished(results: list[Result]) -> Finished:
    codes = {result.value for result in results}
    output = "".join(result.output for result in results)
    assert len(codes) == 1, f"the ranks left with {codes}:\n{output}"
    return subprocess.CompletedProcess([], codes.pop(), output)
