"""The catalogue on the CPU in float32: kernels compiled by Numba, which do in one pass what NumPy does in several.

A library computes the matrix products. Casts, tiny operations and those that NumPy does as fast are the reference's.
"""

from lucid.kernels.cpu.attention import attention, attention_gradient
from lucid.kernels.cpu.compiling import load
from lucid.kernels.cpu.cross_entropy import argmax, cross_entropy, cross_entropy_gradient
from lucid.kernels.cpu.elementwise import activation, activation_gradient, dropout
from lucid.kernels.cpu.embedding import embedding_gradient
from lucid.kernels.cpu.gemm import (
    linear,
    linear_input_gradient,
    linear_weight_gradient,
    product_input,
    round_to_bfloat16,
)
from lucid.kernels.cpu.layer_norm import (
    dropout_add_layer_norm,
    dropout_add_layer_norm_gradient,
    layer_norm,
    layer_norm_gradient,
)
from lucid.kernels.cpu.optimizers import adamw, lamb_moments, lamb_update
from lucid.kernels.cpu.sums import linear_bias_gradient, squared_sums
from lucid.kernels.reference import embedding, lamb_rates, root_of_sum, update_factors
