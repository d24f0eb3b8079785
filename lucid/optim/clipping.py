"""Clipping by the global norm of the gradient: one norm over all parameters, after the reduction over ranks."""

import math

import numpy as np

from lucid import kernels
from lucid.backend import Array, to_host
from lucid.nn.parameters import FlatParameters


def global_norm(flat: FlatParameters) -> float:
    """Return the Euclidean norm of all gradients together; not finite if one of them is not. All ranks call this."""
    return math.sqrt(float(_squared_sums(flat).sum()))


def not_finite(flat: FlatParameters) -> list[str]:
    """Return the names of the parameters whose gradients are not all finite numbers. All ranks call this."""
    sums = np.add.reduceat(_squared_sums(flat), flat.first_blocks)
    return [segment.name for segment, total in zip(flat.segments, sums, strict=True) if not math.isfinite(total)]


def clip_scale(norm: float, max_norm: float) -> float:
    """Return what to multiply gradients of this norm by, at most 1, so that it does not exceed `max_norm`."""
    # The small term is torch.nn.utils.clip_grad_norm_'s, so that both give the same weights.
    return min(1.0, max_norm / (norm + 1e-6))


def _squared_sums(flat: FlatParameters) -> Array:
    """Return the sum of the squares of the gradients in each block, those of other ranks too: float64 [blocks]."""
    sums = np.zeros(len(flat.bounds) - 1)
    for part in flat.ownership.parts:
        gradients = flat.gradients[part.elements]
        sums[part.blocks] = to_host(kernels.of(gradients).squared_sums(gradients, part.bounds))
    flat.ownership.complete(sums)
    return sums
