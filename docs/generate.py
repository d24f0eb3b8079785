"""Writes the pages of the reference that follow from the code: settings.md and commands.md. `make docs` runs it."""

import json
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from lucid.cli.commands import COMMANDS, load
from lucid.launch.options import USAGE
from lucid.training.config.schema import json_schema

FOLDER = Path(__file__).parent / "reference"

# Beyond this a bound says how a number is kept, and nothing about the setting.
_LARGE = 2**31

_SETTINGS_START = """# Settings

All keys of a settings file, with their types and defaults. `lucid train run.yaml --print-config` prints those of a run,
and any of them can be replaced on the command line by its dotted name: `lucid train run.yaml train.steps=200`.
[Recipes](../recipes.md) explains how some of them work together. Integers are below 2**31. This page is made from the
code, by `make docs`.
"""

_COMMANDS_START = """# Commands

What `lucid COMMAND --help` prints, for all commands. [Exit codes](../reliability.md#exit-codes) have a table of their
own. This page is made from the code, by `make docs`.
"""

# How the help of an option writes its default and its range, at its end.
_CONDITIONS = re.compile(r"\s+\[(?:default: (?P<default>[^;\]]*))?(?:; )?(?P<range>[^\]]*)\]$")
_RANGE = re.compile(r"(?:(?P<least>\d+)<=)?x(?:>=(?P<only>\d+))?(?:<=(?P<most>\d+))?")
_BAR = r"\|"  # in a cell of a table
# What the help of an option calls the types of values.
_KINDS = {"int": "N", "int range": "N", "float": "NUMBER", "float range": "NUMBER", "path": "PATH", "str": "TEXT"}


def settings() -> str:
    """Return the page of all settings, with a heading for each key."""
    text = _SETTINGS_START
    for title, description, properties, required in _groups():
        text += f"\n## {title}\n\n{description}\n"
        for key, value in properties.items():
            text += f"\n### `{key}`\n\n{_prose(value['description'])}\n\nType: {_type(value)}."
            text += " Required.\n" if key in required else _default(value)
    return text


@cache
def _groups() -> list[tuple[str, str, dict[str, Any], set[str]]]:
    """Return for each section its title, its description, its settings by dotted key, and those that it needs."""
    schema = json_schema()
    top = {key: value for key, value in schema["properties"].items() if "$ref" not in value}
    groups = [("The run", "Where a run is kept, and what it begins with.", top, {*schema["then"]["required"]})]
    for name in schema["properties"]:
        if name in top:
            continue
        section = schema["$defs"][schema["properties"][name]["$ref"].rpartition("/")[2]]
        properties = {f"{name}.{key}": value for key, value in section["properties"].items()}
        required = schema["then"]["properties"].get(name, {}).get("required", [])
        groups.append((f"Section `{name}`", section["description"], properties, {f"{name}.{key}" for key in required}))
    return groups


def _default(value: dict[str, Any]) -> str:
    if "default" not in value:
        return "\n"
    default = value["default"]
    return f" Default: `{default if isinstance(default, str) else json.dumps(default)}`.\n"


def _type(value: dict[str, Any]) -> str:
    """Return the type of a property of the JSON schema, in words."""
    if alternatives := value.get("anyOf") or value.get("oneOf"):
        return " or ".join(map(_type, alternatives))
    if "$ref" in value:
        return "`{path: FOLDER, weight: NUMBER}`"
    if choices := value.get("enum") or ("const" in value and [value["const"]]):
        *others, last = [f"`{choice}`" for choice in choices]
        return f"{', '.join(others)} or {last}" if others else last
    if items := value.get("prefixItems"):
        return f"list of {len(items)} (each: {_type(items[0])})"
    if value["type"] == "array":
        return f"list (each: {_type(value['items'])})"
    words = {"boolean": "`true` or `false`", "null": "`null`", "string": "path"}
    return words.get(value["type"]) or " ".join([value["type"], *_bounds(value)])


def _bounds(value: dict[str, Any]) -> Iterator[str]:
    most = value.get("maximum")
    below = value.get("exclusiveMaximum", _LARGE)
    if "exclusiveMinimum" in value:
        yield f"above {value['exclusiveMinimum']}"
    if "minimum" in value:
        yield f"{'at least' if most is None and below >= _LARGE else 'from'} {value['minimum']}"
    if most is not None:
        yield f"to {most}"
    elif below < _LARGE:
        yield f"to below {below}"


def commands() -> str:
    """Return the page of all commands, with a heading for each."""
    parts = [_COMMANDS_START]
    for name in COMMANDS:
        if name == "launch":  # It starts without the library that describes the others.
            parts.append(f"\n## lucid launch\n\n```text\n{USAGE}```\n")
        else:
            parts.extend(_command(load(name), f"lucid {name}", 2))
    return "".join(parts)


def _command(command: Any, name: str, level: int) -> Iterator[str]:
    context = command.context_class(command, info_name=name)
    parameters = [each for each in command.get_params(context) if each.name != "help" and not each.hidden]
    shown = {each: each.get_help_record(context) for each in parameters}
    arguments = [_name(each, shown[each][0]) for each in parameters if each.param_type_name == "argument"]
    inner = getattr(command, "commands", {})
    words = [name, *(["COMMAND"] if inner else []), *(["[OPTION ...]"] if parameters else []), *arguments]
    yield f"\n{'#' * level} {name}\n\n    {' '.join(words)}\n"
    for paragraph in command.help.split("\n\n"):
        yield f"\n{paragraph if paragraph.startswith(' ') else _prose(paragraph, 'settings.md')}\n"
    if parameters:
        yield "\n| argument or option | meaning |\n|---|---|\n"
    for each in parameters:
        name_of, help_of = shown[each]
        meaning = _escaped(_CONDITIONS.sub(_conditions, help_of), "settings.md")
        cells = [f"`{_name(each, name_of)}`", meaning]
        yield f"| {' | '.join(cell.replace('|', _BAR) for cell in cells)} |\n"
    for other, each in inner.items():
        yield from _command(each, f"{name} {other}", level + 1)


def _name(parameter: Any, shown: str) -> str:
    """Return how a command is written with an argument or option, which its help has `shown`."""
    name, _, kind = shown.removesuffix(">").partition(" <")
    if parameter.param_type_name == "argument":
        return name if parameter.required or name.startswith("[") else f"[{name}]"
    return f"{name} {_KINDS.get(kind, kind)}" if kind else name


def _conditions(match: re.Match[str]) -> str:
    """Return the default and the range of an option in words."""
    default = f" Default: {match['default']}." if match["default"] else ""
    if match["range"] == "required":
        return f" Required.{default}"
    if bounds := _RANGE.fullmatch(match["range"]):
        least, most = bounds["least"] or bounds["only"], bounds["most"]
        return f"{default} {f'From {least} to {most}' if most else f'At least {least}'}."
    return default


def _prose(text: str, page: str = "") -> str:
    return textwrap.fill(_escaped(text, page), 120, break_long_words=False, break_on_hyphens=False)


def _escaped(text: str, page: str = "") -> str:
    """Return a description whose characters are not taken for Markdown, and whose settings are links to `page`."""
    keys = sorted((key for _, _, properties, _ in _groups() for key in properties if "." in key), key=len)
    found = re.compile(rf"\b(?:{'|'.join(map(re.escape, reversed(keys)))})\b")
    parts = re.split("(`[^`]*`)", text)
    for place in range(0, len(parts), 2):
        plain = re.sub(r"([*<$])", r"\\\1", parts[place])
        parts[place] = found.sub(lambda match: f"[`{match[0]}`]({page}#{match[0].replace('.', '')})", plain)
    return "".join(parts)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "settings.md").write_text(settings(), encoding="utf-8")
    (FOLDER / "commands.md").write_text(commands(), encoding="utf-8")
