"""The layers. Each holds parameters or settings, and calls one function of `functional`."""

from typing import Any, Literal

import numpy as np

from lucid.autograd import Tensor
from lucid.backend import Array, to_device, to_host
from lucid.kernels.masking import IGNORE_INDEX
from lucid.nn import functional, init
from lucid.nn.module import Module, Parameter


class Linear(Module):
    """x [..., I] times weight [O, I] transposed, plus bias [O]. `deviation` is the spread of the initial weights."""

    def __init__(self, inputs: int, outputs: int, deviation: float = 0.02) -> None:
        super().__init__()
        self.weight = Parameter(init.truncated_normal((outputs, inputs), deviation))
        self.bias = Parameter(init.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"inputs={self.weight.shape[1]}, outputs={self.weight.shape[0]}"


class TiedLinear(Module):
    """A linear layer whose weight [O, I] and bias [O] belong to other modules."""

    def __init__(self, weight: Parameter, bias: Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)

    def padded(self, x: Tensor) -> Tensor:
        """Return the same with additional columns of zeros, one for each row that pads the parameters."""
        return functional.linear(x, self.weight.padded, self.bias.padded)

    def extra_repr(self) -> str:
        return f"inputs={self.weight.shape[1]}, outputs={self.weight.shape[0]}, tied"


class LayerNorm(Module):
    """Layer normalisation over the last axis, of `width` elements."""

    def __init__(self, width: int, epsilon: float = 1e-12) -> None:
        super().__init__()
        self.weight = Parameter(init.ones(width))
        self.bias = Parameter(init.zeros(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight, self.bias, self.epsilon)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, epsilon={self.epsilon}"


class Embedding(Module):
    """A table [count, width] of vectors, looked up by integer ids [...] and added to an addend [..., width] if given.

    The vector of `padding_id` starts at zero and gets no gradient from look-ups.
    """

    def __init__(self, count: int, width: int, deviation: float = 0.02, padding_id: int | None = None) -> None:
        super().__init__()
        self.weight = Parameter(init.truncated_normal((count, width), deviation))
        self.padding_id = padding_id
        if padding_id is not None:
            self.weight.data[padding_id] = 0

    def forward(self, ids: Array, addend: Tensor | None = None) -> Tensor:
        return functional.embedding(ids, self.weight, self.padding_id, addend)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"


class Dropout(Module):
    """Dropout at one numbered site of a model (`functional.dropout`)."""

    def __init__(self, probability: float, site: int) -> None:
        super().__init__()
        self.probability = probability
        self.site = site

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.probability, self.site, self.training)

    def extra_repr(self) -> str:
        return f"{self.probability}, site={self.site}"


class CrossEntropyLoss(Module):
    """The cross-entropy of scores [N, V] at labels [N], in nats.

    `reduction` is "mean" over the labels that count (0 if there are none), "sum", or "none", which returns the losses
    [N]. A label that is `ignore_index` does not count.
    """

    def __init__(self, ignore_index: int = IGNORE_INDEX, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction is {reduction!r}; it takes 'mean', 'sum' or 'none'")
        self.ignore_index, self.reduction = ignore_index, reduction

    def forward(self, scores: Tensor, labels: Any) -> Tensor:
        """Return the loss: a tensor without axes, or [N] for "none".

        Labels are integers in [0, V), or `ignore_index`, in an array or a tensor. Raises `ValueError` for others, and
        for other shapes.
        """
        if scores.ndim != 2:
            raise ValueError(f"scores have shape {scores.shape}; they take (N, V): reshape them to (-1, V)")
        array = to_host(labels.data if isinstance(labels, Tensor) else labels)
        if array.shape != scores.shape[:1]:
            raise ValueError(f"labels have shape {array.shape}; they take ({scores.shape[0]},), one for each row")
        if array.dtype.kind not in "iu":
            raise ValueError(f"labels have dtype {array.dtype}; they take integers")
        array = array.astype(np.int64)
        outside = ((array < 0) | (array >= scores.shape[1])) & (array != self.ignore_index)
        if outside.any():
            raise ValueError(
                f"labels have the value {array[outside][0]}; they take 0 to {scores.shape[1] - 1}, or "
                f"{self.ignore_index} for those that do not count"
            )
        return functional.cross_entropy(scores, to_device(array, scores.device), self.ignore_index, self.reduction)

    def extra_repr(self) -> str:
        return f"ignore_index={self.ignore_index}, reduction={self.reduction!r}"
