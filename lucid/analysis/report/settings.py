"""The settings of runs as tables: those that differ between runs, those that are not defaults, and all others."""

import json
from collections.abc import Sequence
from typing import Any

from lucid.analysis.logged_run import differing_settings
from lucid.analysis.report.facts import RunFacts
from lucid.analysis.report.tables import NONE, Table, side_by_side
from lucid.training.config import RunConfig
from lucid.training.config.described import defaults


def differing_table(names: Sequence[str], runs: Sequence[RunFacts]) -> Table:
    """Return the settings with an effect that are not the same in all runs, and the number of ranks."""
    found = differing_settings([run.logged for run in runs])
    return side_by_side(names, [{key: as_text(value) for key, value in each.items()} for each in found])


def changed_table(configs: Sequence[RunConfig]) -> Table:
    """Return the settings that differ from the defaults, with these; of several runs those that all have alike."""
    common, default = _common(configs), _plain(defaults())
    rows = [
        (key, as_text(value), as_text(default[key]) if key in default else NONE)
        for key, value in common.items()
        if key not in default or value != default[key]
    ]
    return Table(("setting", "value", "default"), tuple(rows))


def default_table(configs: Sequence[RunConfig]) -> Table:
    """Return the settings that are defaults; of several runs, in all of them."""
    default = _plain(defaults())
    rows = [(key, as_text(value)) for key, value in _common(configs).items() if default.get(key, NONE) == value]
    return Table(("setting", "value"), tuple(rows))


def _common(configs: Sequence[RunConfig]) -> dict[str, Any]:
    """Return the settings that all have alike, by dotted key."""
    first, *others = [_by_dotted_key(config) for config in configs]
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


def _by_dotted_key(config: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.as_dict().items():
        found |= {f"{name}.{key}": value[key] for key in value} if isinstance(value, dict) else {name: value}
    return found


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values as plain JSON, as settings are in a checkpoint: a list for a tuple."""
    return {key: json.loads(json.dumps(value)) for key, value in values.items()}


def as_text(value: Any) -> str:
    """Return the value of a setting for people, who write it in YAML."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
