"""The floating-point operations (FLOPs) of BERT as MFU counts them: those of its matrix products, and no others.

A product of [M, K] and [K, N] takes 2 M N K. Backward takes twice as many, for the gradients of both factors. Padding,
unmasked positions in the MLM head and recomputation in backward do not count, because the result does not need them.
Chowdhery et al., "PaLM", 2022, appendix B.
"""

from dataclasses import dataclass
from typing import TypeVar

from lucid.backend import Array
from lucid.models.bert.config import BERTConfig

# A number, or one for each sequence.
Count = TypeVar("Count", int, Array)


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
    linear = _linear(config, int(lengths.sum()), masked_tokens, len(lengths))
    return ForwardFLOPs(linear, _attention(config, int((lengths * lengths).sum())))


def forward_flops_each(config: BERTConfig, lengths: Array, masked_tokens: Array) -> Array:
    """Return the FLOPs of a forward pass over each sequence: int64 [S], as `lengths` and `masked_tokens` are."""
    return _linear(config, lengths, masked_tokens, 1) + _attention(config, lengths * lengths)


def _linear(config: BERTConfig, tokens: Count, masked_tokens: Count, sequences: int) -> Count:
    C, layers = config.hidden_size, config.num_hidden_layers
    weights = layers * (4 * C * C + 2 * C * config.intermediate_size)
    met = tokens * weights + masked_tokens * (C * C + config.vocab_size * C) + sequences * (C * C + 2 * C)
    return 2 * met


def _attention(config: BERTConfig, pairs: Count) -> Count:
    return 2 * config.num_hidden_layers * 2 * config.hidden_size * pairs
