"""The files that make a model folder one of sentence-transformers: how token embeddings become one of a sentence.

Training goes on with the encoder alone, so they keep their meaning as long as no module among them has weights.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lucid.errors import CheckpointError
from lucid.files import read_bytes, reason_of, written_aside
from lucid.json_values import parse_json

_MODULES_FILE = "modules.json"
_ENCODER_FILE = "sentence_bert_config.json"
_SETTINGS_FILES = "config_sentence_transformers.json", _ENCODER_FILE
_TOKENIZER_FILE = "tokenizer_config.json"
# The modules without weights that follow the encoder.
_WEIGHTLESS = {"Pooling", "Normalize"}
_FOLDER = re.compile(r"\w[\w-]*")
_LARGEST_FILE = 1 << 20


def read_files(folder: Path, longest: int) -> tuple[dict[str, Any], list[str]]:
    """Return the JSON files of sentence-transformers in a model folder, by name, and a sentence if they are left out.

    A folder of another kind has none. Names of files in folders have a slash. The model takes `longest` tokens.
    """
    if not (folder / _MODULES_FILE).exists():
        return {}, []
    try:
        modules = _read(folder / _MODULES_FILE)
        names = [_MODULES_FILE, *_SETTINGS_FILES, *(f"{path}/config.json" for path in _folders(modules))]
        files = {name: _read(folder / name) for name in names if (folder / name).exists()}
        _keep_length(files, folder, longest)
        return files, []
    except (OSError, ValueError) as error:
        return {}, [f"{folder / _MODULES_FILE} is left out: {reason_of(error)}"]
    except (KeyError, TypeError, AttributeError):
        return {}, [f"{folder / _MODULES_FILE} is left out: it does not list modules with path and type"]


def write_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Write what `read_files` returned. Raises `CheckpointError` if it cannot be written."""
    for name, content in files.items():
        *parents, file = name.split("/")
        if len(parents) > 1 or not all(map(_FOLDER.fullmatch, [*parents, file.removesuffix(".json")])):
            raise CheckpointError(f"{name!r} is not the name of a file of sentence-transformers")
        path = folder.joinpath(*parents, file)
        path.parent.mkdir(exist_ok=True)
        with written_aside(path, CheckpointError) as opened:
            opened.write(json.dumps(content, indent=2).encode() + b"\n")


def _folders(modules: Any) -> list[str]:
    """Return the folders of the modules after the encoder. Raises `ValueError` if they cannot be kept."""
    encoder, *others = modules
    if encoder["path"] != "":
        raise ValueError("its encoder is not in the folder itself")
    for module in others:
        if (kind := module["type"].split(".")[-1]) not in _WEIGHTLESS:
            raise ValueError(f"it has a module {kind}, whose weights lucid does not read")
        if not _FOLDER.fullmatch(module["path"]):
            raise ValueError(f"{module['path']!r} is not the name of a folder in it")
    return [module["path"] for module in others]


def _keep_length(files: dict[str, Any], folder: Path, longest: int) -> None:
    """Write the number of tokens to which sentences are cut into the settings, if only the tokenizer's have it.

    lucid writes the tokenizer's settings anew, with the number that the model takes.
    """
    if (folder / _TOKENIZER_FILE).exists():
        length = _read(folder / _TOKENIZER_FILE).get("model_max_length")
        if isinstance(length, int):
            settings = files.setdefault(_ENCODER_FILE, {})
            if settings.get("max_seq_length") is None:
                settings["max_seq_length"] = min(length, longest)


def _read(path: Path) -> Any:
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"{path} is larger than a megabyte")
    return parse_json(read_bytes(path))
