"""The model of a folder with its tokenizer: loads and writes both, and says which parts were never trained."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lucid.data import load_tokenizer
from lucid.data.tokenizer import save_tokenizer
from lucid.distributed import Communicator, is_first_rank, run_on_first_rank
from lucid.errors import CheckpointError, ConfigError
from lucid.files import check_writable, reason_of
from lucid.models import BERTForPreTraining
from lucid.models.bert import hub
from lucid.models.bert.pooling import Pooling
from lucid.models.bert.sentence_transformers import MODULES_FILE, SentenceSettings, read_files, write_files
from lucid.models.bert.stored_weights import PARTS, StoredWeights, in_words
from lucid.training.checkpoints.checkpoint import STATE_FILE, Checkpoint, Inherited, open_checkpoint
from lucid.training.checkpoints.store import find_model
from lucid.training.config import from_dict


@dataclass(frozen=True)
class ModelFolder:
    """The model in `folder`. Parts that its `weights` lack have random weights."""

    folder: Path
    model: BERTForPreTraining
    weights: StoredWeights

    @classmethod
    def read(cls, folder: Path) -> "ModelFolder":
        """Read the model in `folder`. Raises `CheckpointError`."""
        return cls(folder, *BERTForPreTraining.read(folder))

    def check_has(self, parts: tuple[str, ...], consequence: str) -> None:
        """Raise `ConfigError`, with the consequence, if the folder lacks a part: results would be random."""
        missing = tuple(part for part in parts if part in self.weights.missing)
        if missing:
            raise ConfigError(f"the model in {self.folder} has no {in_words(missing)}, so {consequence}")

    @property
    def judges_pairs(self) -> bool:
        """Whether the folder has what predicts that a sentence follows another."""
        return self.model.config.type_vocab_size > 1 and not {"pooler", "NSP head"} & set(self.weights.missing)

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer in the folder. Raises `ConfigError` if it does not fit the model."""
        tokenizer = load_tokenizer(self.folder)
        known, tokens = self.model.config.vocab_size, tokenizer.get_vocab_size()
        if known < tokens:
            raise ConfigError(
                f"the model in {self.folder} knows {known:,} tokens, but the tokenizer there has {tokens:,}: put the "
                "model's own tokenizer there"
            )
        return tokenizer

    @cached_property
    def longest_text(self) -> int:
        """The most tokens of a text: of a run as many as its sequences had, of another model all that it takes."""
        if self.checkpoint is not None:
            return from_dict(self.checkpoint.state.config).data.sequence_length
        return self.model.config.max_position_embeddings

    def sentence_settings(self, pooling: Pooling | None, normalize: bool | None) -> SentenceSettings:
        """Return how the model makes a vector of a text: as asked, or as its folder says, or else by the mean.

        Raises `ConfigError` if the folder asks for something that lucid does not compute, and nothing else was asked.
        """
        inherited, remarks = self._inherited()
        files, found = inherited.sentence_transformers, SentenceSettings("mean", normalize=False)
        try:
            if files:
                found = SentenceSettings.of_files(files)
            elif os.path.lexists(modules := self.folder / MODULES_FILE) and self.checkpoint is None:
                raise ValueError(remarks[-1].removeprefix(f"{modules} is left out: "))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if pooling is None:
                raise ConfigError(
                    f"{self.folder / MODULES_FILE} cannot be followed ({error}): choose the pooling (--pooling)"
                ) from error
        return replace(
            found,
            pooling=pooling or found.pooling,
            normalize=found.normalize if normalize is None else normalize,
            longest=min(found.longest or self.longest_text, self.model.config.max_position_embeddings),
        )

    def write(
        self,
        folder: Path,
        model: BERTForPreTraining,
        tokenizer: Tokenizer,
        sentence_transformers: Mapping[str, Any] = {},
    ) -> list[str]:
        """Write `model`, which was made of this one, with its tokenizer, as a folder for transformers.

        `sentence_transformers` are files that replace those that this model came with. Parts that were never trained
        are left out. Returns sentences about what is missing. Raises a `LucidError` if the folder cannot be written.
        """
        inherited, remarks = self._inherited()
        absent = tuple(part for part in PARTS if part in inherited.untrained)
        # The head for pairs reads what the pooler makes.
        useless = ("NSP head",) if "pooler" in absent and "NSP head" not in absent else ()
        prefixes = tuple(PARTS[part] for part in absent + useless)
        weights = {name: array for name, array in model.state_dict().items() if not name.startswith(prefixes)}
        hub.write(folder, model.config, weights)
        save_tokenizer(tokenizer, folder, model.config.max_position_embeddings)
        write_files(folder, {**inherited.sentence_transformers, **sentence_transformers})
        missing = []
        if absent:
            missing.append(f"it has no {in_words(absent)}, because {self.folder} has none that was trained")
        if useless:
            missing.append("it has no NSP head either, because that needs the pooler")
        return missing + remarks

    @cached_property
    def checkpoint(self) -> Checkpoint | None:
        """The whole checkpoint in the folder, None if it is a model alone. Raises `CheckpointError`."""
        return open_checkpoint(self.folder) if (self.folder / STATE_FILE).exists() else None

    def _inherited(self) -> tuple[Inherited, list[str]]:
        """Return what the model has from where its training began, and sentences about what is left out of it."""
        if self.checkpoint is not None:
            return self.checkpoint.state.inherited, []
        files, remarks = read_files(self.folder, self.model.config.max_position_embeddings)
        return Inherited(list(self.weights.missing), files), self.weights.remarks_on_the_rest() + remarks


def chosen_model(path: Path, best: bool) -> Path:
    """Return the model folder for `path`: the newest or the `best` checkpoint of a run, or else `path` itself.

    The first rank warns of newer checkpoints that are damaged. Raises `CheckpointError` if there is no model.
    """
    return find_model(path, best, _warn_of_damage)


def agreed_model(communicator: Communicator, path: Path, best: bool) -> Path:
    """Return the same folder on all ranks: the first one's `chosen_model`, since a run may save between two looks.

    All ranks call this, and raise its `CheckpointError`.
    """
    return Path(run_on_first_rank(communicator, lambda: str(chosen_model(path, best))))


def _warn_of_damage(problem: str) -> None:
    if is_first_rank():
        print(f"warning: skipped a damaged checkpoint: {problem}", file=sys.stderr)


def check_new(output: Path) -> None:
    """Raise `CheckpointError` if no model can be made in the folder `output`, or if it is there and not empty."""
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise CheckpointError(f"{output} exists and is not an empty folder: choose another")
    try:
        check_writable(output)
    except OSError as error:
        raise CheckpointError(
            f"{output} cannot be made, because {error.filename} cannot be written ({reason_of(error)}): choose another"
        ) from error
