"""Modules, layers, the fused operations that layers call, and flat buffers for parameters."""

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
