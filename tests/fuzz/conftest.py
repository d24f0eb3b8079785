"""Commands in forks, and the files that they read."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import yaml
from forks import ForkServer
from pyarrow import ipc, parquet
from small_run import SETTINGS
from texts import made_up_text

SITE = 'ACCOUNT="me"\nCPU_PARTITION="cpu"\nGPU_PARTITION="gpu"\nLAUNCHER="srun"\n'


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """Runs `lucid` commands in forks."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def originals(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a corpus, the settings of a run, the run at step 2, its model, and templates of jobs."""
    folder = tmp_path_factory.mktemp("originals")
    (folder / "books").mkdir()
    (folder / "books" / "a.txt").write_text(made_up_text(60, seed=1), encoding="utf-8")
    (folder / "books" / "b.jsonl").write_text('{"text": "One is here. Two is here."}\n' * 3)
    parquet.write_table(pyarrow.table({"input_ids": [[7, 8, 9], [8, 9]]}), folder / "ids.parquet")
    save_dataset(folder / "saved")
    (folder / "examples.tsv").write_text("text\tlabel\nOne is here.\tone\nTwo is here.\ttwo\n")
    (folder / "words.conll").write_text("One B-X\nis O\n\nTwo O\n")
    (folder / "words.jsonl").write_text('{"tokens": ["One", "is"], "labels": ["B-X", "O"]}\n')
    (folder / "hosts").write_text("localhost\n")
    (folder / "labels.tsv").write_text("One is here.\tyes\nTwo is not.\tno\n" * 5)
    (folder / "run.yaml").write_text(yaml.safe_dump(run_of_two_steps()))
    (folder / "changed.yaml").write_text("base: run.yaml\nrun_folder: new\n")
    for command in (
        ("prepare", "books", "-o", "corpus", "--vocab-size", 200, "--held-out", 0.1, "--processes", 1),
        ("train", "run.yaml"),
        ("export", "run", "model", "--sentence-transformers"),
        ("recipes", "--slurm", "slurm"),
    ):
        result = forks.run(*command, folder=folder)
        assert result.code == 0, result.errors
    (folder / "slurm" / "site.env").write_text(SITE)
    return folder


def save_dataset(folder: Path) -> None:
    """Write the files of `Dataset.save_to_disk`."""
    folder.mkdir()
    table = pyarrow.table({"text": ["One is here. Two is here."] * 3})
    with ipc.new_stream(folder / "data.arrow", table.schema) as stream:
        stream.write_table(table)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    (folder / "dataset_info.json").write_text("{}")


def run_of_two_steps() -> dict[str, Any]:
    """Return the settings of a short run; its paths are relative."""
    settings: dict[str, Any] = json.loads(json.dumps(SETTINGS))
    settings["model"]["num_hidden_layers"] = 1
    settings["optimizer"]["warmup_steps"] = 0
    settings["train"] |= {"steps": 2, "global_batch": 4, "evaluation_samples": 8}
    settings["data"]["path"] = "corpus"
    return {**settings, "run_folder": "run"}


@pytest.fixture
def folder(originals: Path, tmp_path: Path) -> Path:
    """A copy of `originals` of one's own."""
    return Path(shutil.copytree(originals, tmp_path / "folder"))
