"""Clipping by the global norm of the gradient: one norm over all parameters, after the reduction over ranks."""

import math

import numpy as np

from lucid import kernels
from lucid.backend import Array, array_module, to_host
from lucid.optim.partition import Partition


def global_norm(partition: Partition) -> Array:
    """Return the Euclidean norm of all gradients, which is not finite if one of them is not. All ranks call this.

    The norm is a float64 array of no dimensions on the gradients' device. This function does not wait for a GPU, but
    `float` of the norm does.
    """
    return norm_of(partition, squared_gradients(partition))


def norm_of(partition: Partition, squares: Array) -> Array:
    """Return the root of the sum of `squared_gradients(partition)`, as `global_norm` does."""
    # The squares are float64, for which no kernels are compiled but this one.
    return kernels.of(partition.flat.gradients).root_of_sum(squares)


def not_finite(partition: Partition) -> list[str]:
    """Return the names of parameters with gradients that are not finite. All ranks call this; it waits for a GPU."""
    sums = np.add.reduceat(to_host(squared_gradients(partition)), partition.flat.first_blocks)
    segments = zip(partition.flat.segments, sums, strict=True)
    return [segment.name for segment, total in segments if not math.isfinite(total)]


def clip_scale(norm: float | Array, max_norm: float) -> Array:
    """Return the factor, at most 1, by which gradients with this norm are multiplied so as not to exceed `max_norm`.

    It is an array of no dimensions on the norm's device. If the norm is not finite, the factor is NaN, which makes the
    optimizer skip the update.
    """
    xp = array_module(norm)
    # torch.nn.utils.clip_grad_norm_ has the same small term, so that both give the same weights.
    return xp.where(xp.isfinite(norm), xp.minimum(max_norm / (norm + 1e-6), 1.0), np.nan)


def squared_gradients(partition: Partition) -> Array:
    """Return float64 [blocks]: the sum of the squares of the gradients in each block. All ranks call this."""
    flat = partition.flat
    if partition.is_whole:
        return kernels.of(flat.gradients).squared_sums(flat.gradients, flat.bounds)
    sums = array_module(flat.gradients).zeros(len(flat.bounds) - 1, np.float64)
    for part in partition.slices:
        gradients = flat.gradients[part.elements]
        sums[part.blocks] = kernels.of(gradients).squared_sums(gradients, part.bounds)
    partition.complete(sums)
    return sums
