"""The catalogue: one typed signature for every fused kernel that training BERT needs.

An implementation is a module with one function for each entry of `Kernels`, of the same signature: `reference`, `cpu`
and `cuda`. `cpu` and `cuda` are tested against `reference`; they may be faster, never richer. The files of all four
have the same names.

Legend: B batch, T length, C width, H heads, V vocabulary, N rows (all leading dimensions), I and O a layer's inputs and
outputs. Arrays are float32 or float64 unless stated otherwise. Kernels put gradients of parameters into a `Target`,
which says whether to overwrite or to add; a target of None means that the gradient is not wanted.
"""

from typing import Protocol

from lucid.kernels.catalogue.attention import AttentionKernels
from lucid.kernels.catalogue.cross_entropy import CrossEntropyKernels
from lucid.kernels.catalogue.elementwise import ElementwiseKernels
from lucid.kernels.catalogue.embedding import EmbeddingKernels
from lucid.kernels.catalogue.gemm import ProductKernels
from lucid.kernels.catalogue.layer_norm import LayerNormKernels
from lucid.kernels.catalogue.optimizers import OptimizerKernels
from lucid.kernels.catalogue.sums import SumKernels


class Kernels(
    ProductKernels,
    ElementwiseKernels,
    LayerNormKernels,
    EmbeddingKernels,
    AttentionKernels,
    CrossEntropyKernels,
    SumKernels,
    OptimizerKernels,
    Protocol,
):
    """All fused kernels."""
