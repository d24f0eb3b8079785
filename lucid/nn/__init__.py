"""Modules, layers, the fused operations they call, and the flat buffers their parameters live in."""

from lucid.nn import functional
from lucid.nn.layers import Dropout, Embedding, LayerNorm, Linear
from lucid.nn.module import Module, ModuleList, Parameter
from lucid.nn.parameters import FlatParameters, Segment, flatten

__all__ = [
    "Dropout",
    "Embedding",
    "FlatParameters",
    "LayerNorm",
    "Linear",
    "Module",
    "ModuleList",
    "Parameter",
    "Segment",
    "flatten",
    "functional",
]
