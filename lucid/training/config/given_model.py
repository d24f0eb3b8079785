"""The shape of the model, where a run starts from one that has it: the section `model` then only says what differs."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lucid.models.bert.hub import CONFIG_FILE, read_config
from lucid.training.checkpoints.store import CheckpointStore
from lucid.training.config.paths import expanded

_SOURCES = "branch_from", "initial_checkpoint", "initial_model"


def fill_in_model(content: dict[str, Any]) -> None:
    """Add to the section `model` of a user's settings what it lacks, from what the run starts from.

    A run that has begun takes it from its own checkpoint, and needs no other folder. Nothing is added where nothing is
    named, or is there yet. Raises `CheckpointError` for damage.
    """
    section = content.get("model", {})
    named = [content[name] for name in _SOURCES if content.get(name) is not None]
    if not named or not isinstance(section, dict):
        return
    try:
        places = [Path(expanded(text)) for text in (content["run_folder"], named[0])]
    except (KeyError, TypeError, ValueError):
        return  # the check of all settings says what is wrong
    folder = next((found for place in places if (found := _model_in(place))), None)
    if folder is not None:
        content["model"] = asdict(read_config(folder)) | section


def _model_in(place: Path) -> Path | None:
    """Return the newest checkpoint of the run in `place`, or `place` itself; None if there is no model."""
    checkpoints = CheckpointStore(place / "checkpoints")
    folder = next(iter(checkpoints.states()[0]), None) if checkpoints.has_any() else place
    return folder if folder is not None and (folder / CONFIG_FILE).exists() else None
