"""Checkpoints: a folder each, whole or not there, from which a run goes on exactly and on any number of ranks.

A checkpoint `checkpoints/step-00001000/` is at once a model folder in Hugging Face's format (`config.json`,
`model.safetensors`, the tokenizer's files) and the rest of the run's state: `optimizer.safetensors` (moments by
parameter name) and `state.json`. `manifest.json` has the SHA-256 of each. It is written aside, flushed, and renamed.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lucid.errors import CheckpointError
from lucid.files import flush, sha256_of, written_aside
from lucid.models import BERTForPreTraining
from lucid.models.bert import hub
from lucid.optim.moments import MomentOptimizer

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1

_PREFIX = "step-"
_ASIDE = ".partial-"


@dataclass(frozen=True)
class TrainingState:
    """Where a run is: all that is neither weights nor moments."""

    step: int
    samples_consumed: int
    optimizer_updates: int
    skipped_steps: int
    skipped_in_a_row: int
    corpus: str
    config: dict[str, Any]
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole."""

    folder: Path
    state: TrainingState

    def load(self, model: BERTForPreTraining, optimizer: MomentOptimizer) -> None:
        """Copy weights and moments into `model` and `optimizer`."""
        hub.read_weights(self.folder, model)
        try:
            optimizer.load_state_dict(load_file(self.folder / OPTIMIZER_FILE), self.state.optimizer_updates)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(f"{self.folder / OPTIMIZER_FILE} does not fit the model: {error}") from error


class CheckpointStore:
    """The checkpoints of one run, of which the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self._keep = keep

    def save(
        self,
        state: TrainingState,
        model: BERTForPreTraining,
        optimizer: MomentOptimizer,
        tokenizer_files: Sequence[Path],
    ) -> Path:
        """Write a checkpoint and remove the oldest ones. The ones before are untouched if it cannot be written."""
        target = self.folder / f"{_PREFIX}{state.step:08d}"
        aside = self.folder / f"{_ASIDE}{target.name}"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            model.save_pretrained(aside)
            save_file(optimizer.state_dict(), aside / OPTIMIZER_FILE)
            (aside / STATE_FILE).write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")
            for path in tokenizer_files:
                shutil.copyfile(path, aside / path.name)
            names = sorted(path.name for path in aside.iterdir())
            for name in names:
                flush(aside / name)
            with written_aside(aside / MANIFEST_FILE, CheckpointError) as file:
                file.write(json.dumps({name: sha256_of(aside / name) for name in names}, indent=2).encode())
            self._put_in_place(aside, target)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(
                f"{target} could not be written: {reason}; the checkpoints before it are whole"
            ) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._remove_others(target)
        return target

    def _put_in_place(self, aside: Path, target: Path) -> None:
        if target.exists():
            # A damaged checkpoint of the same step, or the run was set back: what is new replaces it.
            shutil.rmtree(target)
        os.replace(aside, target)
        flush(self.folder)

    def _remove_others(self, newest: Path) -> None:
        """Remove what is past keeping: old ones, unfinished ones, and later steps, which were found damaged."""
        folders = self._folders()
        later = [folder for folder in folders if folder.name > newest.name]
        kept = folders[len(later) :][: self._keep]
        for folder in (*folders, *self.folder.glob(f"{_ASIDE}*")):
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        """Return the checkpoints' folders, newest first."""
        return sorted(self.folder.glob(f"{_PREFIX}[0-9]*"), reverse=True)

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest whole checkpoint, if any, and what was wrong with newer ones that were passed over.

        Raises `CheckpointError` if there are checkpoints and none of them is whole: nobody wants to start over then.
        """
        problems: list[str] = []
        for folder in self._folders():
            try:
                return open_checkpoint(folder), problems
            except CheckpointError as error:
                problems.append(str(error))
        if problems:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be used ({problems[0]}): mend it, or move the folder away to "
                "begin anew"
            )
        return None, problems


def open_checkpoint(folder: Path) -> Checkpoint:
    """Return the checkpoint in `folder`; `CheckpointError` says what is missing or altered."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        for name, checksum in manifest.items():
            if Path(name).name != name or sha256_of(folder / name) != checksum:
                raise CheckpointError(f"{folder / name} was altered: its checksum differs")
        content = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        if content.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(f"{folder} was written by another version of lucid")
        return Checkpoint(folder, TrainingState(**content))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint: {Path(error.filename).name} is missing") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error


def find_model(path: Path) -> Path:
    """Return the model folder that `path` means: a run's newest checkpoint, or the folder itself.

    Raises `CheckpointError` if there is no model.
    """
    if (path / "checkpoints").is_dir():
        checkpoint, _ = CheckpointStore(path / "checkpoints").newest()
        if checkpoint is None:
            raise CheckpointError(f"{path} has no checkpoint yet: train longer")
        return checkpoint.folder
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path} is neither the folder of a run nor that of a model (it has no config.json)")
    return path
