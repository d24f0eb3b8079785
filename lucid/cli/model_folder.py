"""Loads the model of a folder together with its tokenizer, and says which parts of it were never trained."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from lucid.data import load_tokenizer
from lucid.errors import ConfigError
from lucid.models import BERTForPreTraining
from lucid.models.bert.stored_weights import StoredWeights, in_words


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
