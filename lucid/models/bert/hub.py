"""Reads and writes `config.json` and `model.safetensors` as `transformers` names their content."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from lucid.errors import CheckpointError
from lucid.files import read_bytes, reason_of, written_aside
from lucid.json_values import parse_json
from lucid.models.bert.config import BERTConfig
from lucid.tensor_files import write_arrays

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

# Settings of transformers that change what the model computes, with the only values that lucid supports.
_FIXED_SETTINGS = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


def read_config(folder: Path) -> BERTConfig:
    """Return the configuration in `folder`. Settings that are no field of `BERTConfig` are ignored."""
    path, settings = folder / CONFIG_FILE, read_settings(folder)
    if settings.get("model_type", "bert") != "bert":
        raise CheckpointError(f"{path}: model_type is {settings['model_type']!r}; only 'bert' is supported")
    for name, value in _FIXED_SETTINGS.items():
        if settings.get(name, value) != value:
            raise CheckpointError(f"{path}: {name} is {settings[name]!r}; only {value!r} is supported")
    known = {field.name for field in fields(BERTConfig)}
    try:
        return BERTConfig(**{name: value for name, value in settings.items() if name in known and value is not None})
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_settings(folder: Path) -> dict[str, Any]:
    """Return all settings in the `config.json` of `folder`. Raises `CheckpointError` if it has none."""
    path = folder / CONFIG_FILE
    try:
        settings = parse_json(read_bytes(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{path} does not exist: is {folder} the folder of a model?") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} does not describe a model")
    return settings


def write(
    folder: Path, config: BERTConfig, state: Mapping[str, np.ndarray], more: Mapping[str, Any] | None = None
) -> None:
    """Write `config.json` and `model.safetensors`, each whole or not at all, over files that may be there.

    `more` has further settings for `config.json`: those of a head for another task, and its architecture. Raises
    `CheckpointError` if they cannot be written.
    """
    path = folder / WEIGHTS_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(path, state)
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error.strerror or error}") from error
    with written_aside(folder / CONFIG_FILE, CheckpointError) as file:
        file.write(config_json(config, more or {"architectures": [_architecture(state)]}))


def _architecture(state: Mapping[str, np.ndarray]) -> str:
    """Return the name that transformers has for a model with the parameters in `state`."""
    predictions, pairs = "cls.predictions.bias" in state, "cls.seq_relationship.bias" in state
    return {
        (True, True): "BertForPreTraining",
        (True, False): "BertForMaskedLM",
        (False, True): "BertForNextSentencePrediction",
        (False, False): "BertModel",
    }[predictions, pairs]


def config_json(config: BERTConfig, more: Mapping[str, Any] | None = None) -> bytes:
    """Return the content of `config.json` as transformers reads it: for pretraining, unless `more` says otherwise."""
    settings: dict[str, Any] = {
        "architectures": ["BertForPreTraining"],
        "model_type": "bert",
        "dtype": "float32",
        **asdict(config),
        **_FIXED_SETTINGS,
        "tie_word_embeddings": True,
        **(more or {}),
    }
    return json.dumps(settings, indent=2, sort_keys=True).encode() + b"\n"


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as float32 safetensors, whole or not at all. Raises `OSError` if they cannot be written.

    Contiguous float32 arrays are not copied, and other threads run meanwhile.
    """
    write_arrays(path, {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in tensors.items()})
