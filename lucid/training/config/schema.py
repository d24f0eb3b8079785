"""The JSON schema of settings files, by which editors complete and check them."""

from typing import Any, get_args

from lucid.kernels import Activation
from lucid.models.bert.config import ACTIVATION_SYNONYMS
from lucid.training.config.run_config import RunConfig
from lucid.training.config.sections import MODEL_DESCRIPTIONS
from lucid.training.config.written import BASE, BASE_DESCRIPTION

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """Return the schema of a settings file: each key with its description, and its default if it has one.

    It knows types and ranges; how settings go together is checked when they are loaded.
    """
    schema = _without_titles(RunConfig.model_json_schema())
    definitions, properties = schema["$defs"], schema["properties"]
    _describe_model(definitions["BERTConfig"])
    # Only a file without a base has to say everything.
    required = {"required": schema.pop("required"), "properties": {}}
    for name, section in properties.items():
        definition = definitions.get(section.get("$ref", "").rpartition("/")[2], {})
        if keys := definition.pop("required", None):
            required["properties"][name] = {"required": keys}
    base = {"type": "string", "description": BASE_DESCRIPTION}
    return {
        "$schema": _DRAFT,
        **schema,
        "title": "Settings of a run of lucid",
        "properties": {BASE: base} | properties,
        "if": {"not": {"required": [BASE]}},
        "then": required,
    }


def _describe_model(definition: dict[str, Any]) -> None:
    definition["description"] = "The shape of the model, in the names of Hugging Face's config.json."
    for name, description in MODEL_DESCRIPTIONS.items():
        definition["properties"][name]["description"] = description
    definition["properties"]["hidden_act"]["enum"] = [*get_args(Activation), *ACTIVATION_SYNONYMS]


def _without_titles(value: Any) -> Any:
    """Leave out the titles that pydantic makes of names."""
    if isinstance(value, dict):
        return {key: _without_titles(inner) for key, inner in value.items() if key != "title"}
    return [_without_titles(inner) for inner in value] if isinstance(value, list) else value
