"""`BERTModel`: BERT without heads, from tokens to hidden states.

Devlin et al., "BERT: Pre-training of deep bidirectional transformers for language understanding", 2018.
B batch, T length, C width; N token rows in S sequences.
"""

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lucid.autograd import Tensor
from lucid.models.bert import hub
from lucid.models.bert.arguments import check_inputs
from lucid.models.bert.config import BERTConfig
from lucid.models.bert.encoder import Embeddings, Encoder, Pooler
from lucid.models.bert.loading import read_model
from lucid.models.bert.token_rows import TokenRows
from lucid.nn import Module
from lucid.random import at, current_coordinates

# What the names of its parameters begin with in a model that has heads, and in files.
PREFIX = "bert."


class BERTModel(Module):
    """Embeddings, encoder and pooler: BERT without heads.

    It has the parameter names of `transformers`' `BertModel`. `BERTForPreTraining` holds one as `model.bert`.
    """

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "BERTModel":
        """Read a model from a folder with `config.json` and `model.safetensors`, as `transformers` writes them.

        Heads are left out. If the folder has no pooler, that gets new weights, and a warning says so. Raises
        `CheckpointError`.
        """
        model, weights = read_model(Path(folder), cls, PREFIX)
        for remark in weights.of_encoder().remarks():
            warnings.warn(remark, stacklevel=2)
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` to a folder, from which `transformers` can load them.

        Raises `CheckpointError` if they cannot be written.
        """
        hub.write(Path(folder), self.config, {PREFIX + name: array for name, array in self.state_dict().items()})

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (last_hidden_state [B, T, C], pooler_output [B, C]).

        The inputs, and the errors for wrong ones, are those of `BERTForPreTraining`. `pooler_output` is the first
        token's hidden state through a linear map and tanh.
        """
        grid = check_inputs(
            self.config, self.device, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        )
        rows = grid.token_rows(grid.all_slots()).on(self.device)
        hidden = self.encode(rows)
        return hidden.reshape(*grid.shape, self.config.hidden_size), self.pooler(hidden, rows.sequences)

    def encode(self, rows: TokenRows) -> Tensor:
        """Return the hidden states [N, C] of token rows on the model's device. `pooler` reduces them to [S, C]."""
        sequences = rows.sequences
        dropout = at(sequences.coordinates(current_coordinates(rows.grid_rows))) if self.training else nullcontext()
        with dropout:
            return self.encoder(self.embeddings(rows), sequences)
