"""Modules, layers, the fused operations that layers call, and flat buffers for parameters."""

from typing import TYPE_CHECKING

from lucid.errors import no_such_name
from lucid.nn import functional
from lucid.nn.layers import CrossEntropyLoss, Dropout, Embedding, LayerNorm, Linear, TiedLinear
from lucid.nn.module import Module, ModuleList, Parameter
from lucid.nn.parameters import FlatParameters, Segment, flatten

__all__ = [
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "FlatParameters",
    "LayerNorm",
    "Linear",
    "Module",
    "ModuleList",
    "Parameter",
    "Segment",
    "TiedLinear",
    "flatten",
    "functional",
]

if not TYPE_CHECKING:  # to mypy every name would be there

    def __getattr__(name):
        raise no_such_name(__name__, name, __all__)
