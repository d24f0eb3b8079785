"""A small run: settings on disk, and how to train it in this process or on several ranks."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

SETTINGS = {
    "model": {
        "vocab_size": 200,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
    },
    "data": {"sequence_length": 32},
    "optimizer": {"learning_rate": 3.0e-3, "warmup_steps": 5},
    "train": {"steps": 50, "global_batch": 12, "log_every": 1, "checkpoint_every": 20, "evaluation_samples": 24},
}


@pytest.fixture
def run_file(corpus_folder: Path, tmp_path: Path) -> Path:
    """The YAML file of a run of 50 steps, with dropout, whose folder is `tmp_path / "run"`."""
    path = tmp_path / "run.yaml"
    data = {**SETTINGS["data"], "path": str(corpus_folder)}
    path.write_text(yaml.safe_dump({**SETTINGS, "data": data, "run_folder": str(tmp_path / "run")}))
    return path


@pytest.fixture
def losses() -> Callable[[Path], dict[int, float]]:
    """A function that returns the loss of each step that a run has logged."""

    def read(run_folder: Path) -> dict[int, float]:
        lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    return read
