"""The files that make a model folder one of sentence-transformers: how token embeddings become one of a sentence.

Training goes on with the encoder alone, so they keep their meaning as long as no module among them has weights. They
are written in the form that all versions of sentence-transformers read.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lucid.errors import CheckpointError
from lucid.files import read_bytes, reason_of, written_aside
from lucid.json_values import parse_json
from lucid.models.bert.pooling import Pooling

MODULES_FILE = "modules.json"
_ENCODER_FILE = "sentence_bert_config.json"
_SETTINGS_FILES = "config_sentence_transformers.json", _ENCODER_FILE
_TOKENIZER_FILE = "tokenizer_config.json"
# The modules without weights that follow the encoder.
_WEIGHTLESS = {"Pooling", "Normalize"}
_FOLDER = re.compile(r"\w[\w-]*")
_LARGEST_FILE = 1 << 20
_POOLING_FOLDER, _NORMALIZE_FOLDER = "1_Pooling", "2_Normalize"
# Names of kinds of pooling: those of newer versions, and the flags of older ones.
_NAMES: dict[Pooling, str] = {"mean": "mean", "first": "cls"}
_FLAGS: dict[Pooling, str] = {"mean": "pooling_mode_mean_tokens", "first": "pooling_mode_cls_token"}


@dataclass(frozen=True)
class SentenceSettings:
    """How a folder of sentence-transformers makes a vector of a text.

    `longest` is the number of tokens to which a text is cut, None if the files do not say. `lower_case`: the text is
    written in lower case first, whatever the tokenizer does.
    """

    pooling: Pooling
    normalize: bool
    longest: int | None = None
    lower_case: bool = False

    @classmethod
    def of_files(cls, files: Mapping[str, Any]) -> "SentenceSettings":
        """Return what `read_files` has found. Raises `ValueError` if its pooling is none of lucid's."""
        modules = [(module["type"].split(".")[-1], module["path"]) for module in files[MODULES_FILE][1:]]
        poolings = [files.get(f"{path}/config.json", {}) for kind, path in modules if kind == "Pooling"]
        if len(poolings) != 1:
            raise ValueError(f"it has {len(poolings)} modules that pool, where one is expected")
        encoder = files.get(_ENCODER_FILE, {})
        longest = encoder.get("max_seq_length")
        return cls(
            _pooling_of(poolings[0]),
            normalize=any(kind == "Normalize" for kind, _ in modules),
            longest=longest if isinstance(longest, int) and longest > 0 else None,
            lower_case=encoder.get("do_lower_case") is True,
        )

    def files(self, width: int) -> dict[str, Any]:
        """Return the files that say this of a model with hidden states of so many numbers."""
        kinds = {"": "Transformer", _POOLING_FOLDER: "Pooling"}
        if self.normalize:
            kinds[_NORMALIZE_FOLDER] = "Normalize"
        modules = [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (path, kind) in enumerate(kinds.items())
        ]
        flags = {flag: pooling == self.pooling for pooling, flag in _FLAGS.items()}
        encoder = {"max_seq_length": self.longest, "do_lower_case": self.lower_case}
        return {
            MODULES_FILE: modules,
            _ENCODER_FILE: encoder,
            f"{_POOLING_FOLDER}/config.json": {"word_embedding_dimension": width, **flags},
        }


def _pooling_of(settings: Mapping[str, Any]) -> Pooling:
    found = settings.get("pooling_mode")
    if found is None:
        found = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
        if not found:  # the library's default
            return "mean"
    names = [found] if isinstance(found, str) else found
    for pooling in _NAMES:
        if names in ([_NAMES[pooling]], [_FLAGS[pooling]]):
            return pooling
    raise ValueError(f"it pools by {' and '.join(map(str, names))}, which lucid does not compute")


def read_files(folder: Path, longest: int) -> tuple[dict[str, Any], list[str]]:
    """Return the JSON files of sentence-transformers in a model folder, by name, and a sentence if they are left out.

    A folder of another kind has none. Names of files in folders have a slash. The model takes `longest` tokens.
    """
    if not os.path.lexists(folder / MODULES_FILE):
        return {}, []
    try:
        modules = _read(folder / MODULES_FILE)
        names = [MODULES_FILE, *_SETTINGS_FILES, *(f"{path}/config.json" for path in _folders(modules))]
        files = {name: _read(folder / name) for name in names if os.path.lexists(folder / name)}
        _keep_length(files, folder, longest)
        return files, []
    except (OSError, ValueError) as error:
        return {}, [f"{folder / MODULES_FILE} is left out: {reason_of(error)}"]
    except (KeyError, TypeError, AttributeError):
        return {}, [f"{folder / MODULES_FILE} is left out: it does not list modules with path and type"]


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
