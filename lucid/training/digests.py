"""What a checkpoint holds and came from, in digests that anyone can compute again: for a model card, and to compare.

Nothing is hashed for them but a few settings: the digest of the weights is the SHA-256 of `model.safetensors`, which
the checkpoint's manifest has already, and which `sha256sum` prints.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lucid.errors import CheckpointError
from lucid.files import sha256_of, written_aside
from lucid.models.bert import hub
from lucid.training.checkpoints.checkpoint import Checkpoint
from lucid.training.config import from_dict
from lucid.training.config.effects import curve_settings

DIGESTS_FILE = "digests.json"


@dataclass(frozen=True)
class Digests:
    """The origin of the weights of a checkpoint. Digests are SHA-256, in hexadecimal.

    `weights` is the digest of `model.safetensors`. `checkpoint_weights` is the digest of the checkpoint's file, which
    differs in an export alone. `corpus` is the digest of the corpora and their shares, `tokenizer` of the tokenizer,
    and `settings` of `curve_settings`. `earlier` has the steps up to which the run had other samples, with `corpus` and
    `settings` at that time. `software` and `numerics` are the versions and the `numerical_environment` that trained the
    last steps; `ranks` is None if an earlier version of lucid trained them.
    """

    step: int
    samples: int
    weights: str
    checkpoint_weights: str
    corpus: str
    tokenizer: str
    settings: str
    earlier: list[dict[str, Any]]
    ranks: int | None
    software: dict[str, str]
    numerics: dict[str, str]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Digests":
        """Return the digests of a whole checkpoint."""
        state = checkpoint.state
        return cls(
            step=state.step,
            samples=state.samples_consumed,
            weights=checkpoint.weights_digest,
            checkpoint_weights=checkpoint.weights_digest,
            corpus=state.corpus,
            tokenizer=state.tokenizer,
            settings=settings_digest(state.config),
            earlier=[
                {"step": past.step, "corpus": past.corpus, "settings": settings_digest(past.config)}
                for past in state.past or ()
            ],
            ranks=state.ranks,
            software=state.software,
            numerics=state.numerics,
        )

    def exported(self, folder: Path) -> "Digests":
        """Return the same for the model that was made of the checkpoint in `folder`, whose weights may be fewer."""
        return replace(self, weights=sha256_of(folder / hub.WEIGHTS_FILE))

    def lines(self) -> list[str]:
        """Return the digests for users, one a line."""
        versions = ", ".join(f"{name} {version}" for name, version in self.software.items())
        return [
            *(f"{name:<10}  {getattr(self, name)}" for name in ("weights", "corpus", "tokenizer", "settings")),
            f"{'software':<10}  {versions or 'not noted'}",
            f"{'numbers':<10}  {', '.join(f'{name} {value}' for name, value in self.numerics.items())}",
        ]

    def write(self, folder: Path) -> None:
        """Write `digests.json` into `folder`. Raises `CheckpointError` if it cannot be written."""
        with written_aside(folder / DIGESTS_FILE, CheckpointError) as file:
            file.write(json.dumps(asdict(self), indent=2).encode() + b"\n")


def settings_digest(config: dict[str, Any]) -> str:
    """Return the digest of the settings among these that decide the loss of each step."""
    return hashlib.sha256(json.dumps(curve_settings(from_dict(config)), sort_keys=True).encode()).hexdigest()
