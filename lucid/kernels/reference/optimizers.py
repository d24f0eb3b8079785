"""AdamW and LAMB."""

import math
from itertools import pairwise

from lucid.backend import Array, array_module
from lucid.kernels.arguments import AdamSettings, UpdateBuffers
from lucid.kernels.reference.sums import squared_sums

# AdamW updates block by block, so that the temporaries stay in a core's cache.
_BLOCK = 65_536


def update_factors(
    learning_rate: float | Array, gradient_scale: float | Array, updates: Array, betas: tuple[float, float] | None
) -> Array:
    first, second = 1.0, 1.0
    scale = float(gradient_scale)
    if math.isfinite(scale):
        updates += 1
        if betas is not None:
            first, second = (1 - beta ** int(updates[0]) for beta in betas)
    return array_module(updates).asarray([float(learning_rate), scale, 1 / first, 1 / math.sqrt(second)])


def adamw(
    buffers: UpdateBuffers, bounds: Array, factors: Array, settings: AdamSettings, squares: Array | None = None
) -> None:
    learning_rate, gradient_scale, *corrections = factors.tolist()
    if not math.isfinite(gradient_scale):
        return
    values, gradients, first_moments, second_moments, bfloat16_copy = buffers
    before = None if squares is None else values.copy()
    for start in range(0, len(values), _BLOCK):
        block = slice(start, start + _BLOCK)
        moments = first_moments[block], second_moments[block]
        _advance_moments(gradients[block], *moments, settings.betas, gradient_scale)
        values[block] *= 1 - learning_rate * settings.weight_decay
        values[block] -= _direction(*moments, settings.epsilon, *corrections) * learning_rate
    if bfloat16_copy is not None:
        bfloat16_copy[...] = values
    _measure(before, values, bounds, squares)


def lamb_moments(buffers: UpdateBuffers, bounds: Array, factors: Array, settings: AdamSettings) -> Array:
    xp, gradient_scale = array_module(buffers.values), float(factors[1])
    if not math.isfinite(gradient_scale):
        return xp.zeros((len(bounds) - 1, 2))
    _advance_moments(*buffers[1:4], settings.betas, gradient_scale)
    update = _lamb_direction(buffers, factors, settings)
    return xp.stack([squared_sums(buffers.values, bounds), squared_sums(update, bounds)], axis=1)


def lamb_rates(squares: Array, first_blocks: Array, adapting: int, factors: Array) -> Array:
    xp = array_module(squares)
    rates = xp.empty(len(squares))
    bounds = pairwise([*first_blocks.tolist(), len(squares)])
    for parameter, (start, stop) in enumerate(bounds):
        value_norm, update_norm = xp.sqrt(squares[start:stop].sum(axis=0))
        adapts = parameter < adapting and value_norm > 0 and update_norm > 0
        rates[start:stop] = factors[0] * (value_norm / update_norm if adapts else 1)
    return rates


def lamb_update(
    buffers: UpdateBuffers,
    bounds: Array,
    rates: Array,
    factors: Array,
    settings: AdamSettings,
    squares: Array | None = None,
) -> None:
    if not math.isfinite(float(factors[1])):
        return
    values, update = buffers.values, _lamb_direction(buffers, factors, settings)
    before = None if squares is None else values.copy()
    for (start, stop), rate in zip(pairwise(bounds.tolist()), rates.tolist(), strict=True):
        values[start:stop] -= update[start:stop] * rate
    if buffers.bfloat16_copy is not None:
        buffers.bfloat16_copy[...] = values
    _measure(before, values, bounds, squares)


def _measure(before: Array | None, values: Array, bounds: Array, squares: Array | None) -> None:
    """Write the sums of the squares of the change and of the values, if they are wanted."""
    if before is not None and squares is not None:
        squares[:, 0] = squared_sums(before - values, bounds)
        squares[:, 1] = squared_sums(values, bounds)


def _lamb_direction(buffers: UpdateBuffers, factors: Array, settings: AdamSettings) -> Array:
    """Return LAMB's update: Adam's direction plus weight decay."""
    direction = _direction(buffers.first_moments, buffers.second_moments, settings.epsilon, *factors[2:].tolist())
    return direction + settings.weight_decay * buffers.values


def _advance_moments(
    gradients: Array,
    first_moments: Array,
    second_moments: Array,
    betas: tuple[float, float],
    gradient_scale: float,
) -> None:
    """Fold the gradients into the moments in place."""
    scaled = gradients * gradient_scale
    first_moments *= betas[0]
    first_moments += (1 - betas[0]) * scaled
    second_moments *= betas[1]
    scaled *= scaled
    scaled *= 1 - betas[1]
    second_moments += scaled


def _direction(
    first_moments: Array, second_moments: Array, epsilon: float, first_factor: float, root_factor: float
) -> Array:
    """Return Adam's direction."""
    root = array_module(second_moments).sqrt(second_moments)
    root *= root_factor
    root += epsilon
    direction = first_moments / root
    direction *= first_factor
    return direction
