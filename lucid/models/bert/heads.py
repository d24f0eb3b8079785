"""The heads for masked language modelling (MLM) and next-sentence prediction (NSP), and what a head's loss consists of.

Attribute names are Hugging Face's. C width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lucid import kernels
from lucid.autograd import Tensor
from lucid.backend import Array
from lucid.kernels.masking import IGNORE_INDEX
from lucid.models.bert.config import BERTConfig
from lucid.nn import LayerNorm, Linear, Module, Parameter, TiedLinear, functional, init

Reduction = Literal["mean", "sum"]

# Rows of scores are padded to a multiple of this: to whole cache lines of a GPU, whatever the dtype.
_ROW_MULTIPLE = 64


class PredictionTransform(Module):
    """A linear map, the activation and a normalisation, before the vocabulary is scored."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, config.initializer_range)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.kind = config.activation

    def forward(self, x: Tensor) -> Tensor:
        product = functional.linear(x, self.dense.weight)
        return self.LayerNorm(functional.activation(product, self.kind, self.dense.bias))


class LanguageModelHead(Module):
    """Scores of the vocabulary [..., V] from hidden states [..., C]. Its weight is the word embedding.

    In training the scores are [N, W], of which the last W - V columns are zeros that do not count. Matrix products are
    slow if rows start at unaligned addresses, as rows of 30,522 bfloat16 numbers do. So `flatten` pads weight and bias.
    """

    def __init__(self, config: BERTConfig, word_embedding: Parameter) -> None:
        super().__init__()
        self.transform = PredictionTransform(config)
        self.bias = Parameter(init.zeros(config.vocab_size))
        self.decoder = TiedLinear(word_embedding, self.bias)
        word_embedding.row_multiple = self.bias.row_multiple = _ROW_MULTIPLE

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x))

    def padded(self, x: Tensor) -> Tensor:
        """Return the scores [N, W] of hidden states [N, C]. W is V if the parameters are not in flat buffers."""
        return self.decoder.padded(self.transform(x))


class PreTrainingHeads(Module):
    """Both heads."""

    def __init__(self, config: BERTConfig, word_embedding: Parameter) -> None:
        super().__init__()
        self.predictions = LanguageModelHead(config, word_embedding)
        self.seq_relationship = Linear(config.hidden_size, 2, config.initializer_range)


@dataclass(frozen=True)
class HeadLoss:
    """One head on one batch: its losses (nats) summed, the number of predictions that count, and of correct ones.

    `loss` and `correct`, an integer, have no axes and lie on the model's device: reading them waits for the device.
    """

    loss: Tensor
    count: int
    correct: Array

    @classmethod
    def of(
        cls,
        scores: Tensor,
        labels: Array,
        count: int,
        *,
        ignore_index: int = IGNORE_INDEX,
        vocabulary: int | None = None,
    ) -> "HeadLoss":
        """Return the loss of scores [N, V] under labels [N], `count` of which are not `ignore_index`.

        With `vocabulary` only so many columns of the scores count: the others are padding.
        """
        loss = functional.cross_entropy(scores, labels, ignore_index, reduction="sum", vocabulary=vocabulary)
        correct = (most_probable(scores, vocabulary) == labels) & (labels != ignore_index)
        return cls(loss, count, correct.sum())

    def reduced(self, reduction: Reduction) -> Tensor:
        """Return the sum of the losses, or their mean, which is 0 if none counts."""
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is {reduction!r}; it takes 'mean' or 'sum'")
        return self.loss if reduction == "sum" else self.loss * (1.0 / max(1, self.count))

    def accuracy(self) -> Tensor:
        """Return the fraction of correct predictions, 0 if none counts."""
        return Tensor(np.asarray(int(self.correct) / max(1, self.count), dtype=np.float32))


def most_probable(scores: Tensor, vocabulary: int | None = None) -> Array:
    """Return the index of the greatest of scores [..., V], or of their first `vocabulary` columns: int64 [...]."""
    return kernels.of(scores.data).argmax(scores.data, vocabulary)
