"""The floating-point operations (FLOPs) of BERT as MFU counts them: those of its matrix products, and no others.

A product of [M, K] and [K, N] takes 2 M N K. Backward takes twice as many, for the gradients of both factors. Padding,
unmasked positions in the MLM head and recomputation in backward do not count, because the result does not need them.
Chowdhery et al., "PaLM", 2022, appendix B.
"""

from dataclasses import dataclass

from lucid.backend import Array
from lucid.models.bert.config import BERTConfig


@dataclass(frozen=True)
class ForwardFLOPs:
    """The FLOPs of a forward pass, in linear layers and in the products of attention."""

    linear: int
    attention: int

    @property
    def training(self) -> int:
        """The FLOPs of forward and backward together."""
        return 3 * (self.linear + self.attention)


def forward_flops(config: BERTConfig, lengths: Array, masked_tokens: int) -> ForwardFLOPs:
    """Return the FLOPs of a forward pass with both heads over sequences of `lengths` [S] (integers), without padding.

    C width, I intermediate width, V vocabulary. In each layer each token meets 4 C C + 2 C I weights. Each masked token
    meets C C + V C weights in the MLM head, and each sequence C C + 2 C in pooler and NSP head. Attention multiplies
    the query of each token with every key of its sequence, and its probabilities with every value: C multiplications
    for each pair.
    """
    C, layers = config.hidden_size, config.num_hidden_layers
    weights = layers * (4 * C * C + 2 * C * config.intermediate_size)
    linear = (
        int(lengths.sum()) * weights
        + masked_tokens * (C * C + config.vocab_size * C)
        + len(lengths) * (C * C + 2 * C)
    )  # fmt: skip
    attention = layers * 2 * C * int((lengths * lengths).sum())
    return ForwardFLOPs(2 * linear, 2 * attention)
