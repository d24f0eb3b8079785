"""The catalogue on an NVIDIA GPU, in float32 and bfloat16: CUDA kernels that do in one pass what CuPy does in several.

Rows and their gradients have either type, and results have the type of the input. Parameters and their gradients,
statistics, losses and sums are float32, and so is all arithmetic. The order of each sum follows from shapes alone,
without atomic additions, so that every run gives the same bits. cuBLASLt computes the matrix products.
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
