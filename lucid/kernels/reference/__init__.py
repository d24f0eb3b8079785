"""The catalogue as plain formulas over the array module: the truth against which the fast versions are tested.

`lucid.kernels.catalogue` describes signatures and shapes.
"""

from lucid.kernels.reference.attention import attention, attention_gradient
from lucid.kernels.reference.cross_entropy import argmax, cross_entropy, cross_entropy_gradient
from lucid.kernels.reference.elementwise import activation, activation_gradient, dropout
from lucid.kernels.reference.embedding import embedding, embedding_gradient
from lucid.kernels.reference.gemm import (
    linear,
    linear_bias_gradient,
    linear_input_gradient,
    linear_weight_gradient,
    product_input,
    round_to_bfloat16,
)
from lucid.kernels.reference.layer_norm import (
    dropout_add_layer_norm,
    dropout_add_layer_norm_gradient,
    layer_norm,
    layer_norm_gradient,
)
from lucid.kernels.reference.optimizers import adamw, lamb_moments, lamb_rates, lamb_update, update_factors
from lucid.kernels.reference.sums import root_of_sum, squared_sums
