"""Reads a run's settings from YAML; every message names the file (or the command line) and the dotted key."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lucid.errors import ConfigError
from lucid.training.config.described import descriptions
from lucid.training.config.given_model import fill_in_model
from lucid.training.config.paths import USERS_TEXT
from lucid.training.config.run_config import RunConfig
from lucid.training.config.sections import PATH_FORMS, PROBE_FORMS, RATE_FORMS, SIZE_FORMS, WeightedCorpus
from lucid.training.config.written import BASE, Written, read_settings
from lucid.training.config.yaml_text import parse_yaml

# Mistakes in one message.
_MOST_SENTENCES = 20
# Characters of a value in a message.
_LONGEST_VALUE = 100
# What the validator expects, by the kinds of its errors, in words of YAML.
_SECTION = "a section, with a line `key: value` for each of its settings"
_EXPECTED = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dataclass_type", "dict_type"), _SECTION),
    **dict.fromkeys(("tuple_type", "list_type"), "a list: [...]"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text",
    "string_unicode": "text in UTF-8",
}
# Settings of earlier versions.
_REMOVED = {"train.attention": "there is one implementation of attention now; remove the key"}
# Settings of which earlier versions took more than there can be now; results do not depend on them.
_MOST = {"data.workers": 256, "data.prefetch": 1024}


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return a run's settings from a YAML file and its bases; `overrides` are `dotted.key=value`, the value in YAML.

    In paths, `~` and `$NAME` are expanded. What the section `model` leaves out, a run has from the model or checkpoint
    that it starts from. Raises `ConfigError` with one sentence for each mistake.
    """
    written = read_settings(path)
    overridden = [_apply(written.content, override) for override in overrides]
    fill_in_model(written.content)
    try:
        return RunConfig.model_validate(written.content, context=USERS_TEXT)
    except ValidationError as error:
        sentences = [_sentence(item, written, overridden) for item in error.errors()[:_MOST_SENTENCES]]
        raise ConfigError("\n".join(sentences)) from error


def from_dict(content: dict[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Return the settings that `as_dict` returned, with `overrides` as `load` takes them, but paths as they are.

    Raises `ConfigError` if another version of lucid wrote them, or an override does not fit.
    """
    content = {
        section: {
            name: _at_most(value, _MOST.get(f"{section}.{name}"))
            for name, value in settings.items()
            if f"{section}.{name}" not in _REMOVED
        }
        if isinstance(settings, dict)
        else settings
        for section, settings in content.items()
    }
    overridden = [_apply(content, override) for override in overrides]
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        if overridden:
            raise ConfigError(_sentence(error.errors()[0], Written(Path("the run's settings")), overridden)) from error
        raise ConfigError(
            f"the settings were written by another version of lucid: {error.errors()[0]['msg']}"
        ) from error


def _at_most(value: Any, most: int | None) -> Any:
    return min(value, most) if most is not None and isinstance(value, int) else value


def _apply(content: dict[str, Any], override: str) -> str:
    """Set one `dotted.key=value` in `content` and return the key."""
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"{override!r} on the command line is not of the form section.key=value")
    if any("\udc80" <= letter <= "\udcff" for letter in override):  # bytes that Python could not decode
        raise ConfigError(
            f"{override!r} on the command line is not UTF-8, which settings and checkpoints are written in: rename the "
            "file, or set PYTHONUTF8=1 if its name is UTF-8"
        )
    if names == [BASE]:
        raise ConfigError(f"{override!r} on the command line: {BASE} stands in a settings file; give that file")
    section = content
    for name in names[:-1]:
        inner = section.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{override!r} on the command line: {name} is not a section")
        section = inner
    try:
        section[names[-1]] = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{override!r} on the command line: the value is not valid YAML: {error}") from error
    return ".".join(names)


def _sentence(item: Any, written: Written, overrides: Sequence[str]) -> str:
    key = ".".join(str(part) for part in item["loc"] if part not in PATH_FORMS + RATE_FORMS + PROBE_FORMS + SIZE_FORMS)
    on_command_line = any(_is_about(item, key, other) for other in overrides)
    where = "the command line" if on_command_line else written.place_of(key, item["msg"])
    match item["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            if key in _REMOVED:
                return f"{where}: the key {key} is gone: {_REMOVED[key]}"
            return f"{where}: the key {key} is unknown; {_hint(key, PATH_FORMS[1] in item['loc'])}"
        case "missing":
            # An element of a value, such as the second beta, has no description of its own.
            return f"{where}: the key {key} is missing: {descriptions().get(key, 'the value is incomplete')}"
        case "value_error":
            message = str(item["ctx"]["error"])
            return f"{where}: {f'{key}: ' if key else ''}{message}"
        case "path_type":
            expected = "a folder, or a list of {path: FOLDER, weight: NUMBER}" if key == "data.path" else "a path"
            return f"{where}: {key} is {_shown(item['input'])}, but it should be {expected}"
        case "too_long":
            return f"{where}: {key} has {item['ctx']['actual_length']} values, but takes {item['ctx']['max_length']}"
        case kind if kind in _EXPECTED:
            return f"{where}: {key or 'a name'} is {_shown(item['input'])}, but it should be {_EXPECTED[kind]}"
        case _:
            message = item["msg"][0].lower() + item["msg"][1:]
            return f"{where}: {key} is {_shown(item['input'])}, but {message.replace('input should', 'it should')}"


def _is_about(item: Any, key: str, override: str) -> bool:
    """Return whether a mistake, at `key` or in how settings go together, is about what an `override` has set."""
    if not key:
        return re.search(rf"\b{re.escape(override)}\b", item["msg"]) is not None
    return f"{key}.".startswith(f"{override}.") or f"{override}.".startswith(f"{key}.")


def _hint(key: str, is_of_corpus: bool) -> str:
    """Say which known key an unknown one may stand for: one of a corpus in a list, or any."""
    name, known = (key.rpartition(".")[2], WeightedCorpus.model_fields) if is_of_corpus else (key, descriptions())
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        return f"did you mean {close[0]}?"
    return f"it takes {' and '.join(known)}" if is_of_corpus else "`lucid train --print-config` lists the known ones"


def _shown(value: object) -> str:
    """Return the start of `value` as Python writes it."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
