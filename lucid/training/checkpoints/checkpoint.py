"""A checkpoint: a folder, whole or absent, from which a run resumes exactly and on any number of ranks.

It is a model folder in Hugging Face's format (`config.json`, `model.safetensors`, the tokenizer's files) that also
holds the rest of the run's state: `optimizer.safetensors` (moments by parameter name) and `state.json`. `manifest.json`
has the SHA-256 of each file. The folder is written under another name, flushed, and renamed.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from safetensors import SafetensorError, safe_open

from lucid.errors import CheckpointError
from lucid.files import check_is_file, flush, read_bytes, reason_of, sha256_of
from lucid.json_values import parse_dataclass, parse_json
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.models.bert import hub
from lucid.models.bert.stored_weights import PARTS, in_words, stored_weights
from lucid.optim.moments import MomentOptimizer
from lucid.training.checkpoints.best import Best
from lucid.training.product_choices import ProductChoices

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 2

# Prefix of the folder's name while the checkpoint is being written.
ASIDE = ".partial-"

_REQUIRED_FILES = {hub.CONFIG_FILE, hub.WEIGHTS_FILE, OPTIMIZER_FILE, STATE_FILE}

Counter = Annotated[int, Field(ge=0, lt=2**62)]
# Loss, correct predictions and labels of MLM, then of NSP, over the steps since the last line of the log.
WindowSums = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Inherited:
    """What a run has from the model that it started with, for its export.

    `untrained` has the parts that were drawn anew and not trained since, keys of `PARTS`. `sentence_transformers` has
    the content of the JSON files with which sentence-transformers uses the encoder, by name.
    """

    untrained: list[str] = field(default_factory=list)
    sentence_transformers: dict[str, Any] = field(default_factory=dict)

    def after_training(self, with_pairs: bool) -> "Inherited":
        """Return the same after steps that train the MLM head and, with pairs, everything else."""
        left = [] if with_pairs else [part for part in self.untrained if part != "MLM head"]
        return replace(self, untrained=left)


@dataclass(frozen=True)
class Past:
    """The end of a stretch of a run that went on with other settings or another corpus than before.

    Up to `step`, the run had this configuration and this `corpus`. `known` is False where an earlier version of lucid
    trained, which did not note such changes: there may have been more of them before.
    """

    step: Counter
    samples_consumed: Counter
    corpus: str
    config: dict[str, Any]
    known: bool = True


@dataclass(frozen=True)
class TrainingState:
    """The state of a run, without its weights and moments.

    `corpus` and `tokenizer` are hashes. `window` holds the sums, over all ranks, of the steps that the log does not
    report yet (`Window.totals`). `numerics` is the `numerical_environment`. `training_seconds` is the time of the steps
    alone, without evaluations and checkpoints. `products` are the algorithms of products on GPUs. `past` has the
    stretches with other samples before the present one, in order. `tokens` counts those of all steps, without padding.
    `ranks` is the number of ranks, `began` the step at which this attempt began, `software` the `versions`.
    Earlier versions noted none of these (None).
    `best` is None before the first evaluation. `probes` has a digest of the texts of each probe, by its name.
    """

    step: Counter
    samples_consumed: Counter
    optimizer_updates: Counter
    skipped_steps: Counter
    skipped_in_a_row: Counter
    window: WindowSums
    corpus: str
    tokenizer: str
    numerics: dict[str, str]
    config: dict[str, Any]
    training_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    products: ProductChoices = field(default_factory=ProductChoices)
    inherited: Inherited = field(default_factory=Inherited)
    past: list[Past] | None = None
    tokens: Counter | None = None
    ranks: Counter | None = None
    began: Counter | None = None
    software: dict[str, str] = field(default_factory=dict)
    best: Best | None = None
    probes: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def as_past(self, known: bool) -> Past:
        """Return what a later state notes about the steps up to this one."""
        return Past(self.step, self.samples_consumed, self.corpus, self.config, known)

    @property
    def is_best(self) -> bool:
        """Whether no step up to this one had a smaller held-out loss."""
        return self.best is not None and self.best.step == self.step

    def at_the_beginning(self) -> "TrainingState":
        """Return the state of a new run that starts at step 0 with these weights and moments."""
        return replace(
            self,
            step=0,
            samples_consumed=0,
            skipped_steps=0,
            skipped_in_a_row=0,
            window=(0.0,) * 6,
            training_seconds=0.0,
            past=[],
            tokens=0,
            best=None,
            probes={},
        )


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is written from: arrays by name in host memory, which nobody changes meanwhile."""

    state: TrainingState
    config: BERTConfig
    weights: Mapping[str, np.ndarray]
    moments: Mapping[str, np.ndarray]
    tokenizer_files: Mapping[str, bytes]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files match their checksums. `weights_digest` is the SHA-256 of `model.safetensors`."""

    folder: Path
    state: TrainingState
    weights_digest: str

    def load(self, model: BERTForPreTraining, optimizer: MomentOptimizer) -> dict[str, np.ndarray]:
        """Copy the weights into `model`, and return the moments for `optimizer.restore`."""
        weights = stored_weights(self.folder, model.config)
        if weights.missing:
            raise CheckpointError(f"{self.folder} is damaged: it has no {in_words(weights.missing)}")
        model.load_state_dict(weights.read())
        path = self.folder / OPTIMIZER_FILE
        try:
            # One moment at a time: all of them take twice as much memory as the weights.
            check_is_file(path)
            with safe_open(path, framework="numpy") as file:
                return optimizer.lay_out(file.get_tensor)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} does not fit the model: {error}") from error


def write_checkpoint(folder: Path, snapshot: Snapshot) -> None:
    """Write the checkpoint `folder`, which must not exist. Raises `OSError` if it cannot be written."""
    aside = folder.with_name(f"{ASIDE}{folder.name}")
    try:
        aside.mkdir(parents=True)
        _write_files(aside, snapshot)
        names = sorted(path.name for path in aside.iterdir())
        checksums = {name: sha256_of(aside / name) for name in names}
        (aside / MANIFEST_FILE).write_text(json.dumps(checksums, indent=2), encoding="utf-8")
        for name in (*names, MANIFEST_FILE):
            flush(aside / name)
        flush(aside)
        os.rename(aside, folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_files(folder: Path, snapshot: Snapshot) -> None:
    (folder / hub.CONFIG_FILE).write_bytes(hub.config_json(snapshot.config))
    hub.write_tensors(folder / hub.WEIGHTS_FILE, snapshot.weights)
    hub.write_tensors(folder / OPTIMIZER_FILE, snapshot.moments)
    (folder / STATE_FILE).write_text(json.dumps(asdict(snapshot.state), indent=2), encoding="utf-8")
    for name, content in snapshot.tokenizer_files.items():
        (folder / name).write_bytes(content)


def _inherited_before(config: dict[str, Any]) -> Inherited:
    """Return what a run of 0.1.0 with this configuration has inherited, which its checkpoints do not say."""
    begins_anew = config.get("initial_model") is None and config.get("initial_checkpoint") is None
    without_pairs = config.get("data", {}).get("nsp") is False
    return Inherited(untrained=list(PARTS)).after_training(with_pairs=not (begins_anew and without_pairs))


def open_checkpoint(folder: Path) -> Checkpoint:
    """Return the checkpoint in `folder`. Raises `CheckpointError` that says what is missing or altered."""
    state, checksums = _checked_state(folder, whole=True)
    return Checkpoint(folder, state, checksums[hub.WEIGHTS_FILE])


def read_state(folder: Path) -> TrainingState:
    """Return the state in the checkpoint `folder`, whose other files are not read. Raises `CheckpointError`."""
    return _checked_state(folder, whole=False)[0]


def _checked_state(folder: Path, whole: bool) -> tuple[TrainingState, dict[str, str]]:
    """Return the state of a checkpoint and its checksums, after a check of that file, or of the `whole` checkpoint."""
    name = MANIFEST_FILE
    try:
        _check_is_file(folder, name)
        manifest = parse_json(read_bytes(folder / MANIFEST_FILE))
        for name in sorted(_REQUIRED_FILES | manifest.keys()) if whole else (STATE_FILE,):
            _check_is_file(folder, name)
            if sha256_of(folder / name) != manifest.get(name):
                raise CheckpointError(f"{folder / name} was altered: its checksum differs")
        name = STATE_FILE
        text = read_bytes(folder / name)
        content = parse_json(text)
        if content.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(f"{folder} was written by another version of lucid")
        state = parse_dataclass(TrainingState, text)
        if "inherited" not in content:
            state = replace(state, inherited=_inherited_before(state.config))
        return state, manifest
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint: {Path(error.filename).name} is missing") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / name} is damaged: {reason_of(error)}") from error


def _check_is_file(folder: Path, name: str) -> None:
    """Raise unless `name` is an ordinary file directly in `folder`: reading a pipe, for example, never ends."""
    path = folder / name
    if Path(name).name != name or (path.exists() and not path.is_file()):
        raise CheckpointError(f"{folder} is damaged: {name} is not a file in it")
