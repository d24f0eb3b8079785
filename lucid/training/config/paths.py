"""Paths in settings. When settings are loaded, `~` and `$NAME` in them are expanded, as a shell would."""

import os
from pathlib import Path
from string import Template
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, SerializationInfo, ValidationInfo

# The context in which a user's text is read and written. What lucid has recorded is taken as it is.
USERS_TEXT = {"paths": "as users write them"}


def _expanded(path: Any, info: ValidationInfo) -> Any:
    if path == "":
        raise ValueError("a path cannot be empty")
    return expanded(path) if info.context == USERS_TEXT and isinstance(path, str) else path


def expanded(path: str) -> str:
    """Return a user's path with `~` and `$NAME` expanded. Raises `ValueError` if it cannot be."""
    try:
        filled_in = Template(path).substitute(os.environ)
    except KeyError as error:
        name = error.args[0]
        raise ValueError(
            f"{path} names the variable {name}, which is not set: set it, or write the path out"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} has a $ without the name of a variable: write $$ for the character") from error
    home = os.path.expanduser(filled_in)
    if home.startswith("~"):
        raise ValueError(f"{path} begins with the home of an unknown user: write ./~ for a name with ~")
    return home


def _check_can_exist(path: Path) -> Path:
    """Refuse a path that no file can have."""
    name = str(path)
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in name):
        raise ValueError("a path cannot hold this character")
    if max(len(part.encode()) for part in (*path.parts, "")) > 255 or len(name.encode()) >= 4096:
        raise ValueError("a path cannot be this long")
    return path


def _written(path: Path, info: SerializationInfo) -> str:
    text = str(path)
    if info.context != USERS_TEXT:
        return text
    return ("./" if text.startswith("~") else "") + text.replace("$", "$$")


FilePath = Annotated[
    Path,
    BeforeValidator(_expanded),
    AfterValidator(_check_can_exist),
    PlainSerializer(_written, return_type=str, when_used="json"),
]
