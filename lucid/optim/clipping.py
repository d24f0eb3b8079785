"""Clipping by the global norm of the gradient: one norm over all parameters, after the reduction over ranks."""

import math

import numpy as np

from lucid import kernels
from lucid.backend import Array, array_module, to_host
from lucid.optim.partition import Partition


def global_norm(partition: Partition) -> Array:
    """Return the Euclidean norm of all gradients together; not finite if one of them is not. All ranks call this.

    It is a float64 array of no dimensions, of the gradients' library: `float` of it waits for a GPU, this does not.
    """
    return kernels.of(partition.flat.gradients).root_of_sum(_squared_sums(partition))


def not_finite(partition: Partition) -> list[str]:
    """Return the names of the parameters whose gradients are not all finite numbers. All ranks call this.

    This waits for a GPU.
    """
    sums = np.add.reduceat(to_host(_squared_sums(partition)), partition.flat.first_blocks)
    segments = zip(partition.flat.segments, sums, strict=True)
    return [segment.name for segment, total in segments if not math.isfinite(total)]


def clip_scale(norm: float | Array, max_norm: float) -> Array:
    """Return what to multiply gradients of this norm by, at most 1, so that it does not exceed `max_norm`.

    It is an array of no dimensions, of the norm's library. Where the norm is not finite it is not a number, and the
    update is skipped.
    """
    xp = array_module(norm)
    # The small term is torch.nn.utils.clip_grad_norm_'s, so that both give the same weights.
    return xp.where(xp.isfinite(norm), xp.minimum(max_norm / (norm + 1e-6), 1.0), np.nan)


def _squared_sums(partition: Partition) -> Array:
    """Return the sum of the squares of the gradients in each block, those of other ranks too: float64 [blocks]."""
    flat = partition.flat
    if partition.is_whole:
        return kernels.of(flat.gradients).squared_sums(flat.gradients, flat.bounds)
    sums = array_module(flat.gradients).zeros(len(flat.bounds) - 1, np.float64)
    for part in partition.slices:
        gradients = flat.gradients[part.elements]
        sums[part.blocks] = kernels.of(gradients).squared_sums(gradients, part.bounds)
    partition.complete(sums)
    return sums
