"""Settings as their users have written them: one YAML file on top of another, which it names as its `base`."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lucid.errors import ConfigError
from lucid.files import open_text, reason_of
from lucid.training.config.paths import expanded
from lucid.training.config.yaml_text import LARGEST, parse_yaml

# The key with the path of the file that this one changes.
BASE = "base"
BASE_DESCRIPTION = (
    "Settings file that this one changes: its keys hold unless they stand here. The path is relative to this file."
)


@dataclass(frozen=True)
class Written:
    """The merged content of a settings file and its bases, and the file that each value comes from, by dotted key."""

    path: Path
    content: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Path] = field(default_factory=dict)

    def place_of(self, key: str, message: str) -> Path:
        """Return the file with a mistake: in the value of `key`, or in the values that the `message` names if "".

        It is the file that was asked for, unless only its bases have such values.
        """
        for part in [key, *_parents(key)]:
            if part in self.places:
                return self.places[part]
        if key:
            found = [place for other, place in self.places.items() if other.startswith(f"{key}.")]
        else:
            found = [place for other, place in self.places.items() if re.search(rf"\b{re.escape(other)}\b", message)]
        return self.path if self.path in found or not found else found[0]


def read_settings(path: Path) -> Written:
    """Return the settings in the file `path` on top of its bases. Raises `ConfigError`."""
    written = Written(path)
    seen: list[str] = []
    following: Path | None = path
    while following is not None:
        if (real := os.path.realpath(following)) in seen:
            raise ConfigError(f"{following}: the files name each other as {BASE}: leave it out in one of them")
        seen.append(real)
        content = _read(following)
        base = _base_of(following, content)
        written.places.update((key, following) for key in _fill_in(written.content, content))
        following = base
    return written


def _read(path: Path) -> dict[str, Any]:
    try:
        with open_text(path) as file:
            text = file.read(LARGEST + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist: give the path of a run's YAML file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {reason_of(error)}") from error
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings: it takes sections such as data, model and train")
    return content


def _base_of(path: Path, content: dict[str, Any]) -> Path | None:
    """Take the base out of the content of the file `path`, and return where it is."""
    if BASE not in content:
        return None
    base = content.pop(BASE)
    if not isinstance(base, str) or not base or "\0" in base:
        raise ConfigError(f"{path}: {BASE} is {base!r}, but it should be the path of another settings file")
    try:
        place = path.parent / expanded(base)
    except ValueError as error:
        raise ConfigError(f"{path}: {BASE}: {error}") from error
    if not place.exists():
        raise ConfigError(
            f"{path}: {BASE} is {base}, but {place} does not exist: its path is relative to {path.parent.absolute()}"
        )
    return place


def _fill_in(content: dict[str, Any], more: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Add to `content` the values of `more` that it lacks, and yield their dotted keys."""
    for name, value in more.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            if name not in content:
                content[name] = {}
            if isinstance(content[name], dict):
                yield from _fill_in(content[name], value, f"{key}.")
        elif name not in content:
            content[name] = value
            yield key


def _parents(key: str) -> Iterator[str]:
    """Yield the keys of what holds the value of a dotted key, the innermost first."""
    while key := key.rpartition(".")[0]:
        yield key
