"""The parts of BERT without its heads: embeddings, the stack of transformer layers, and the pooled first token.

Attribute names are Hugging Face's, and so are the names of the parameters. There are N token rows in S sequences, of
width C. Each row is computed on its own, except in attention, which sees one sequence at a time.
"""

from typing import Literal

from lucid.autograd import Tensor
from lucid.kernels import Activation
from lucid.kernels.sequences import Sequences
from lucid.models.bert.config import BERTConfig
from lucid.models.bert.token_rows import TokenRows
from lucid.nn import Dropout, Embedding, LayerNorm, Linear, Module, ModuleList, functional

Recomputation = Literal["none", "attention", "layer"]

# Sites of dropout are numbered through the whole model: one after the embeddings, then three in each layer. The site
# after these is a head's.
_SITES_PER_LAYER = 3


def site_of_head(config: BERTConfig) -> int:
    """Return the number of the site of dropout that a head on top of the encoder may use."""
    return 1 + config.num_hidden_layers * _SITES_PER_LAYER


class Embeddings(Module):
    """The sum of word, position and token type vectors, normalised."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        C, deviation = config.hidden_size, config.initializer_range
        self.word_embeddings = Embedding(config.vocab_size, C, deviation, padding_id=config.pad_token_id)
        self.position_embeddings = Embedding(config.max_position_embeddings, C, deviation)
        self.token_type_embeddings = Embedding(config.type_vocab_size, C, deviation)
        self.LayerNorm = LayerNorm(C, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob, site=0)

    def forward(self, rows: TokenRows) -> Tensor:
        if rows.embeddings is not None:
            x = rows.embeddings
        else:
            assert rows.word_ids is not None
            x = self.word_embeddings(rows.word_ids)
        x = self.token_type_embeddings(rows.token_type_ids, addend=x)
        x = self.position_embeddings(rows.position_ids, addend=x)
        return self.dropout(self.LayerNorm(x))


class SelfAttention(Module):
    """Multi-head attention of a sequence to itself."""

    def __init__(self, config: BERTConfig, site: int) -> None:
        super().__init__()
        C, deviation = config.hidden_size, config.initializer_range
        self.query = Linear(C, C, deviation)
        self.key = Linear(C, C, deviation)
        self.value = Linear(C, C, deviation)
        self.join(self.query.weight, self.key.weight, self.value.weight)
        self.join(self.query.bias, self.key.bias, self.value.bias)
        self.heads = config.num_attention_heads
        self.dropout_probability = config.attention_probs_dropout_prob
        self.site = site

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        joined = functional.joined_linear(x, *((part.weight, part.bias) for part in (self.query, self.key, self.value)))
        return functional.attention(joined, sequences, self.heads, self.dropout_probability, self.site, self.training)


class ResidualOutput(Module):
    """The end of each half of a layer: a linear map, dropout, the residual, and normalisation."""

    def __init__(self, inputs: int, config: BERTConfig, site: int) -> None:
        super().__init__()
        self.dense = Linear(inputs, config.hidden_size, config.initializer_range)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout_probability = config.hidden_dropout_prob
        self.site = site

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        # The next kernel adds the bias when it reads the product, which saves a pass.
        product, norm = functional.linear(x, self.dense.weight), self.LayerNorm
        return functional.dropout_add_layer_norm(
            product, self.dense.bias, residual, norm.weight, norm.bias, norm.epsilon,
            self.dropout_probability, self.site, self.training,
        )  # fmt: skip


class AttentionBlock(Module):
    """The first half of a layer: attention."""

    def __init__(self, config: BERTConfig, site: int) -> None:
        super().__init__()
        # Hugging Face names this attribute `self`.
        self.self = SelfAttention(config, site)
        self.output = ResidualOutput(config.hidden_size, config, site + 1)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        return self.output(self._modules["self"](x, sequences), x)


class Intermediate(Module):
    """The widening linear map of the second half, and its activation."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.intermediate_size, config.initializer_range)
        self.kind: Activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        return functional.activation(functional.linear(x, self.dense.weight), self.kind, self.dense.bias)


class Layer(Module):
    """One transformer layer, normalised after each half (post-LN)."""

    def __init__(self, config: BERTConfig, number: int) -> None:
        super().__init__()
        site = 1 + number * _SITES_PER_LAYER
        self.attention = AttentionBlock(config, site)
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config.intermediate_size, config, site + 2)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        x = self.attention(x, sequences)
        return self.output(self.intermediate(x), x)


class Encoder(Module):
    """The stack of layers."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.layer = ModuleList([Layer(config, number) for number in range(config.num_hidden_layers)])

    def recompute(self, part: Recomputation) -> None:
        """Choose what backward computes again: nothing, the attention block of every layer, or every whole layer."""
        for layer in self.layer:
            layer.recomputed, layer.attention.recomputed = part == "layer", part == "attention"

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        for layer in self.layer:
            x = layer(x, sequences)
        return x


class Pooler(Module):
    """The output of each sequence's first token, through a linear map and tanh: [S, C]."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, config.initializer_range)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        # An embedding look-up, because its gradient is a kernel, ten times as fast as the gradient of an index.
        return self.dense(functional.embedding(sequences.first_rows, x)).tanh()
