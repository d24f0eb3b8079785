"""The memory of training BERT: how many parameters there are, and how many bytes backward needs of a forward pass."""

from dataclasses import dataclass

from lucid.models.bert.config import BERTConfig
from lucid.models.bert.encoder import Recomputation

_FLOAT32 = 4
# What dropout keeps of scores on a GPU is stored by pieces of so many rows, and blocks of so many keys.
_BLOCK = 64


def parameter_count(config: BERTConfig) -> int:
    """Return how many numbers a `BERTForPreTraining` has; the MLM head's matrix is the word embedding."""
    C, inner = config.hidden_size, config.intermediate_size
    norm, square = 2 * C, C * C + C
    rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    layer = 4 * square + 2 * norm + 2 * C * inner + C + inner
    heads = square + norm + config.vocab_size + 2 * C + 2
    return rows * C + norm + config.num_hidden_layers * layer + square + heads


@dataclass(frozen=True)
class NumberSizes:
    """How many bytes a number takes that a forward pass keeps: of any activation, or of one that a product takes.

    Of the scores of a query with all keys, either all are kept, or one sum a head and, with dropout, a bit for each.
    """

    activation: int
    operand: int
    keeps_scores: bool


def activation_bytes(
    config: BERTConfig, sizes: NumberSizes, recompute: Recomputation, sequences: int, length: int, masked_tokens: int
) -> int:
    """Return about how many bytes a micro-batch takes at most, for activations and their gradients.

    Its `sequences` are of `length` tokens, without padding, and `masked_tokens` of all are predicted.
    """
    C, inner, rows = config.hidden_size, config.intermediate_size, sequences * length
    a, o = sizes.activation, sizes.operand
    statistics = 2 * _FLOAT32
    of_head = _FLOAT32 * length if sizes.keeps_scores else _FLOAT32 + _bits(config, length)
    scores = config.num_attention_heads * of_head
    # The factors of products (x, queries, keys, values, what attention returns; x, the activation), what is activated,
    # and what is normalised at the end.
    first_half = 5 * C * o + scores + C * a + statistics
    second_half = C * o + inner * (a + o) + C * a + statistics
    layer = {"none": first_half + second_half, "attention": C * a + second_half, "layer": C * a}[recompute]
    # A first half is computed again when the second's arrays are gone, a whole layer when its own were not kept.
    again = {"none": 0, "attention": max(0, first_half - second_half), "layer": first_half + second_half}[recompute]
    embeddings = C * a + statistics
    # Factors, what is activated, what is normalised, and the vocabulary's scores.
    head = 2 * C * (o + a) + config.vocab_size * a
    rounded = o if o != a else 0
    # Backward begins with the gradients of the vocabulary's scores, and goes on with those of the layers.
    of_scores = masked_tokens * (head + config.vocab_size * (a + rounded))
    of_layer = rows * (again + inner * (a + rounded) + 2 * C * a)
    return rows * (embeddings + config.num_hidden_layers * layer) + max(of_scores, of_layer)


def _bits(config: BERTConfig, length: int) -> int:
    """Return how many bytes of a row say what dropout keeps of a head's scores, where the scores are not kept.

    They are of whole blocks of 64 keys, and of one more piece of 64 rows than a sequence fills.
    """
    if config.attention_probs_dropout_prob == 0:
        return 0
    return _BLOCK // 8 * -(-length // _BLOCK) * (length + _BLOCK) // length
