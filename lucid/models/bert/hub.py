"""Reads and writes `config.json` and `model.safetensors` as `transformers` names their content."""

import json
import os
import re
import stat
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # teaches NumPy the name bfloat16, which safetensors then reads
import numpy as np
import safetensors
from safetensors.numpy import save_file

from lucid.errors import CheckpointError
from lucid.files import parse_json, written_aside
from lucid.models.bert.config import BERTConfig
from lucid.nn import Module

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

# Settings of transformers that change what the model computes, with the only values that lucid supports.
_FIXED_SETTINGS = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# Buffers that old versions of transformers wrote among the weights.
_IGNORED = {"bert.embeddings.position_ids"}
_NUMBERS = "float32", "float16", "bfloat16", "float64"
# Parameters that a checkpoint may lack, because a model for another task has none of them.
_OPTIONAL = ("bert.pooler.", "cls.")


def read_config(folder: Path) -> BERTConfig:
    """Return the configuration in `folder`. Settings that are no field of `BERTConfig` are ignored."""
    path = folder / CONFIG_FILE
    try:
        settings = parse_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{path} does not exist: is {folder} the folder of a model?") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(settings, dict) or settings.get("model_type", "bert") != "bert":
        raise CheckpointError(f"{path} does not describe a BERT (model_type is not 'bert')")
    for name, value in _FIXED_SETTINGS.items():
        if settings.get(name, value) != value:
            raise CheckpointError(f"{path}: {name} is {settings[name]!r}; only {value!r} is supported")
    known = {field.name for field in fields(BERTConfig)}
    try:
        return BERTConfig(**{name: value for name, value in settings.items() if name in known and value is not None})
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_weights(folder: Path, model: Module) -> list[str]:
    """Copy the weights in `folder` into `model`. Old names, missing tied entries and missing heads are accepted.

    Return the names of the missing parameters, which keep their values, and warn about them.
    """
    path = folder / WEIGHTS_FILE
    tensors = _read_tensors(path)
    parameters = dict(model.named_parameters())
    shared = dict(model.named_parameters(keep_shared=True))
    state: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if name not in shared:
            raise CheckpointError(f"{path}: {name} is not a parameter of a BERT for pretraining")
        if array.shape != shared[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {array.shape}, {CONFIG_FILE} asks for {shared[name].shape}"
            )
        owner = next(own for own, parameter in parameters.items() if parameter is shared[name])
        if owner in state and not np.array_equal(state[owner], array):
            raise CheckpointError(f"{path}: {name} differs from {owner}; only models that tie them are supported")
        state[owner] = array
    missing = [name for name in parameters if name not in state]
    lost = [name for name in missing if not name.startswith(_OPTIONAL)]
    if lost:
        raise CheckpointError(f"{path} lacks {', '.join(lost[:3])}{' and more' if len(lost) > 3 else ''}")
    if missing:
        warnings.warn(f"{path} has no {', '.join(missing)}: newly initialised", stacklevel=3)
    model.load_state_dict({name: state.get(name, parameter.numpy()) for name, parameter in parameters.items()})
    return missing


def check_size(folder: Path, config: BERTConfig) -> None:
    """Raise `CheckpointError` if no file is large enough for the weights of `config`, before they take memory."""
    path = folder / WEIGHTS_FILE
    if not path.exists():
        others = sorted(found.name for found in folder.glob("*.bin"))
        hint = f"; {others[0]} is a pickle, which lucid does not read: save it as safetensors" if others else ""
        raise CheckpointError(f"{path} does not exist{hint}")
    rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    layer = config.hidden_size * 4 + config.intermediate_size * 2
    least = config.hidden_size * (rows + config.num_hidden_layers * layer)
    if path.is_file() and least > path.stat().st_size:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes, too few for the {least:,} weights that {CONFIG_FILE} asks for"
        )


def write(folder: Path, config: BERTConfig, state: Mapping[str, np.ndarray]) -> None:
    """Write `config.json` and `model.safetensors`, each whole or not at all, over files that may be there.

    Raises `CheckpointError` if they cannot be written.
    """
    path = folder / WEIGHTS_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(path, state)
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error.strerror or error}") from error
    with written_aside(folder / CONFIG_FILE, CheckpointError) as file:
        file.write(config_json(config))


def config_json(config: BERTConfig) -> bytes:
    """Return the content of `config.json` as transformers reads it."""
    settings: dict[str, Any] = {
        "architectures": ["BertForPreTraining"],
        "model_type": "bert",
        "dtype": "float32",
        **asdict(config),
        **_FIXED_SETTINGS,
    }
    return json.dumps(settings, indent=2, sort_keys=True).encode() + b"\n"


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as float32 safetensors, whole or not at all. Raises `OSError` if they cannot be written.

    Contiguous float32 arrays are not copied, and other threads run meanwhile.
    """
    aside = path.with_name(f"{path.name}.partial")
    try:
        # The library would make a file that only its owner can read. A file made here has the wanted permissions.
        aside.touch()
        permissions = stat.S_IMODE(aside.stat().st_mode)
        arrays = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in tensors.items()}
        save_file(arrays, aside, metadata={"format": "pt"})
        aside.chmod(permissions)
        aside.replace(path)
    except safetensors.SafetensorError as error:
        raise _as_os_error(error, path) from error
    finally:
        aside.unlink(missing_ok=True)


def _as_os_error(error: safetensors.SafetensorError, path: Path) -> OSError:
    """Return the error of the operating system that the library mentions in its own text."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is None:
        return OSError(str(error))
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path))


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {_current_name(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    except (safetensors.SafetensorError, OSError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not any(name.startswith(("bert.", "cls.")) for name in tensors):
        # transformers saves a bare encoder without the prefix.
        tensors = {f"bert.{name}": array for name, array in tensors.items()}
    tensors = {name: array for name, array in tensors.items() if name not in _IGNORED}
    for name, array in tensors.items():
        if array.dtype.name not in _NUMBERS:
            raise CheckpointError(f"{path}: {name} has dtype {array.dtype}; weights have {', '.join(_NUMBERS)}")
    return {name: array.astype(np.float32, copy=False) for name, array in tensors.items()}


def _current_name(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
