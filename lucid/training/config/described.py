"""The settings of a run with their descriptions and defaults, for users."""

import math
import textwrap
from dataclasses import asdict
from typing import Any

import yaml

from lucid.models import BERTConfig
from lucid.training.config.paths import USERS_TEXT
from lucid.training.config.run_config import RunConfig
from lucid.training.config.sections import MODEL_DESCRIPTIONS, Settings

# Of a line of YAML with its description, without "# ".
_COLUMNS = 98


def as_yaml(config: RunConfig) -> str:
    """Return all settings, defaults included, as YAML that `load` reads, with their descriptions as comments."""
    known, lines = descriptions(), []
    for name, value in config.model_dump(mode="json", context=USERS_TEXT).items():
        if isinstance(value, dict):
            lines += [f"{name}:", *(_lines(f"  {key}", value[key], known[f"{name}.{key}"]) for key in value)]
        else:
            lines.append(_lines(name, value, known[name]))
    return "\n".join(lines) + "\n"


def descriptions() -> dict[str, str]:
    """Return the description of each setting and each section, by dotted key."""
    found = {f"model.{key}": text for key, text in MODEL_DESCRIPTIONS.items()}
    for name, field in RunConfig.model_fields.items():
        found[name] = field.description or ""
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            inner = field.annotation.model_fields.items()
            found |= {f"{name}.{key}": setting.description or "" for key, setting in inner}
    return found


def defaults() -> dict[str, Any]:
    """Return the default of each setting that has one, by dotted key."""
    found: dict[str, Any] = {f"model.{key}": value for key, value in asdict(BERTConfig()).items()}
    for name, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            inner = field.annotation.model_fields.items()
            found |= {f"{name}.{key}": setting.default for key, setting in inner if not setting.is_required()}
        elif not field.is_required() and name != "model":
            found[name] = field.default
    return found


def _lines(name: str, value: Any, description: str) -> str:
    """Return lines of YAML: a setting with its value, and its description in comments to the right."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True).removesuffix("\n...\n")
    setting = f"{name}: {text.strip()}  "
    width = max(_COLUMNS - len(setting), _COLUMNS // 3)
    described = textwrap.wrap(description, width, break_long_words=False, break_on_hyphens=False)
    return setting + f"\n{' ' * len(setting)}".join(f"# {line}" for line in described)
