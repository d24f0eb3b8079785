"""What is trained on a card, alike by both libraries: models, batches, and how fast they ought to be.

Neither lucid nor PyTorch is imported here, so that each may have an environment of its own.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from peers.side import full_batch, masked_in_a_row

# What differs from BERT-base.
MODELS: dict[str, dict[str, int]] = {
    "tiny": {
        "vocab_size": 250, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 16,
    },
    "base": {},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}  # fmt: skip

# Sequences a step, which fill a card of 80 GB with both libraries on it.
BATCHES = {("base", 128): 256, ("base", 512): 64, ("large", 128): 128, ("large", 512): 32, ("tiny", 16): 4}

# Sequences a second on an H200: a limit that nothing can pass, and the aim.
CEILINGS = {("base", 128): 11_321, ("base", 512): 2_624, ("large", 128): 3_286, ("large", 512): 775}
AIMS = {("base", 128): 7_000, ("base", 512): 1_600, ("large", 128): 2_200, ("large", 512): 490}


@dataclass(frozen=True)
class Workload:
    """Full sequences, 15% of whose tokens are masked: `rows` of `length` tokens a step."""

    model: str
    length: int
    rows: int
    dropout: float

    @classmethod
    def of(cls, model: str, length: int, rows: int | None, dropout: float) -> Self:
        """Return a workload, by default of the sequences that `BATCHES` has, or of as many tokens."""
        if rows is None:
            rows = BATCHES.get((model, length)) or max(1, BATCHES.get((model, 128), 8) * 128 // length)
        return cls(model, length, rows, dropout)

    @classmethod
    def parsed(cls, text: str) -> Self:
        """Return what `as_argument` was called on."""
        return cls(**json.loads(text))

    def as_argument(self) -> str:
        """Return all of it as text, for a command line."""
        return json.dumps(asdict(self))

    @property
    def name(self) -> str:
        return f"{self.model}, {self.rows} x {self.length}, dropout {self.dropout:g}"

    @property
    def masked_tokens(self) -> int:
        return self.rows * masked_in_a_row(self.length)

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from BERT-base, by the names of `config.json`."""
        dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), self.dropout)
        return MODELS[self.model] | dropout

    def batch(self, folder: str) -> dict[str, np.ndarray]:
        """Return the batch, of `peers.side.full_batch`, for the model whose weights are in `folder`."""
        vocabulary = json.loads(Path(folder, "config.json").read_text())["vocab_size"]
        return full_batch(self.rows, self.length, vocabulary)
