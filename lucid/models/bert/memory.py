"""The memory that training a BERT takes: the number of parameters, and the bytes of activations."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from lucid.errors import CheckpointError
from lucid.launch.limits import HostMemory
from lucid.models.bert.config import BERTConfig
from lucid.models.bert.encoder import Recomputation
from lucid.models.bert.shapes import parameter_shapes

_FLOAT32 = 4
# On a GPU, dropout of attention stores its bits in pieces of so many rows, by blocks of so many keys.
_BLOCK = 64


def parameter_count(config: BERTConfig) -> int:
    """Return the number of parameters of a `BERTForPreTraining`. The matrix of the MLM head is the word embedding."""
    return sum(prod(shape) for _, shape in parameter_shapes(config))


def check_model_fits(folder: Path, config: BERTConfig) -> None:
    """Raise `CheckpointError` if the parameters of the model in `folder` could never fit in the memory of this host."""
    needed, most = _FLOAT32 * parameter_count(config), HostMemory.read().most
    if needed > most:
        raise CheckpointError(
            f"the weights of {folder} take {needed / 1e9:,.1f} GB of memory, and this host has {most / 1e9:,.1f} GB: "
            "use a larger one, or a smaller model"
        )


@dataclass(frozen=True)
class NumberSizes:
    """The bytes of a number that a forward pass keeps: of an activation in general, and of a factor of a product.

    With `keeps_scores` attention keeps the scores of a query with all keys. Without, it keeps one sum for each head
    and, with dropout, one bit for each score.
    """

    activation: int
    factor: int
    keeps_scores: bool


def activation_bytes(
    config: BERTConfig, sizes: NumberSizes, recompute: Recomputation, sequences: int, length: int, masked_tokens: int
) -> int:
    """Return an estimate of the most bytes that activations and their gradients take in a micro-batch.

    It has `sequences` of `length` tokens without padding, and `masked_tokens` in all.
    """
    C, inner, rows = config.hidden_size, config.intermediate_size, sequences * length
    a, f = sizes.activation, sizes.factor
    statistics = 2 * _FLOAT32
    of_head = _FLOAT32 * length if sizes.keeps_scores else _FLOAT32 + _bits(config, length)
    scores = config.num_attention_heads * of_head
    # First half: x, queries, keys, values and the result of attention, which are factors of products, then the input of
    # the normalisation. Second half: x and the activation, which are factors, and the inputs of activation and
    # normalisation.
    first_half = 5 * C * f + scores + C * a + statistics
    second_half = C * f + inner * (a + f) + C * a + statistics
    layer = {"none": first_half + second_half, "attention": C * a + second_half, "layer": C * a}[recompute]
    # A recomputed first half reuses the memory of the second half, which backward has freed. A whole layer reuses none.
    again = {"none": 0, "attention": max(0, first_half - second_half), "layer": first_half + second_half}[recompute]
    embeddings = C * a + statistics
    # Factors, the inputs of activation and normalisation, and the scores of the vocabulary.
    head = 2 * C * (f + a) + config.vocab_size * a
    rounded = f if f != a else 0
    # Backward computes the gradients of these scores first, and those of the layers afterwards.
    of_scores = masked_tokens * (head + config.vocab_size * (a + rounded))
    of_layer = rows * (again + inner * (a + rounded) + 2 * C * a)
    return rows * (embeddings + config.num_hidden_layers * layer) + max(of_scores, of_layer)


def _bits(config: BERTConfig, length: int) -> int:
    """Return the bytes of a row that store which scores of a head dropout keeps.

    They cover whole blocks of 64 keys, and one more piece of 64 rows than a sequence fills.
    """
    if config.attention_probs_dropout_prob == 0:
        return 0
    return _BLOCK // 8 * -(-length // _BLOCK) * (length + _BLOCK) // length
