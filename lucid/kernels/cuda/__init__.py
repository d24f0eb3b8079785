"""The catalogue on an NVIDIA GPU, in float32 and bfloat16: CUDA kernels that do in one pass what CuPy does in several.

Rows, and gradients by rows, are arrays of either type, and results are of the type that goes in. Parameters and their
gradients, statistics, losses and sums are float32, as all arithmetic is. Sums are made in an order that follows from
shapes alone, with no atomic addition, so that every run gives the same bits. The matrix products are cuBLASLt's.
"""

from lucid.kernels.cuda.attention import attention, attention_gradient
from lucid.kernels.cuda.casting import product_input, round_to_bfloat16
from lucid.kernels.cuda.cross_entropy import argmax, cross_entropy, cross_entropy_gradient
from lucid.kernels.cuda.elementwise import activation, activation_gradient, dropout
from lucid.kernels.cuda.embedding import embedding, embedding_gradient
from lucid.kernels.cuda.gemm import linear, linear_input_gradient, linear_weight_gradient
from lucid.kernels.cuda.layer_norm import (
    dropout_add_layer_norm,
    dropout_add_layer_norm_gradient,
    layer_norm,
    layer_norm_gradient,
)
from lucid.kernels.cuda.optimizers import adamw, lamb_moments, lamb_rates, lamb_update, update_factors
from lucid.kernels.cuda.sums import linear_bias_gradient, root_of_sum, squared_sums

__all__ = [
    "activation",
    "activation_gradient",
    "adamw",
    "argmax",
    "attention",
    "attention_gradient",
    "cross_entropy",
    "cross_entropy_gradient",
    "dropout",
    "dropout_add_layer_norm",
    "dropout_add_layer_norm_gradient",
    "embedding",
    "embedding_gradient",
    "lamb_moments",
    "lamb_rates",
    "lamb_update",
    "layer_norm",
    "layer_norm_gradient",
    "linear",
    "linear_bias_gradient",
    "linear_input_gradient",
    "linear_weight_gradient",
    "product_input",
    "root_of_sum",
    "round_to_bfloat16",
    "squared_sums",
    "update_factors",
]
