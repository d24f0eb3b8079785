"""Clipping by the global norm of the gradient: one norm over all parameters, after the reduction over ranks."""

import math

from lucid import kernels
from lucid.nn.parameters import FlatParameters


def global_norm(flat: FlatParameters) -> float:
    """Return the Euclidean norm of all gradients together; not finite if one of them is not."""
    return math.sqrt(float(kernels.of(flat.gradients).squared_sum(flat.gradients)))


def clip_scale(norm: float, max_norm: float) -> float:
    """Return what to multiply gradients of this norm by, at most 1, so that it does not exceed `max_norm`."""
    # The small term is torch.nn.utils.clip_grad_norm_'s, so that both give the same weights.
    return min(1.0, max_norm / (norm + 1e-6))
