"""The run that most tests train: a BERT of two small layers, with dropout, for 50 steps."""

from pathlib import Path

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


def write_settings(path: Path, corpus: Path, run_folder: Path) -> Path:
    """Write the YAML file of the run on `corpus`, whose folder is `run_folder`, and return its path."""
    data = {**SETTINGS["data"], "path": str(corpus)}
    path.write_text(yaml.safe_dump({**SETTINGS, "data": data, "run_folder": str(run_folder)}))
    return path
