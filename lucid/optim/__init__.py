"""Optimizers over the flat buffers, clipping, and the schedule of the learning rate."""

from lucid.optim.adamw import AdamW
from lucid.optim.clipping import clip_scale, global_norm, norm_of, not_finite, squared_gradients
from lucid.optim.lamb import LAMB
from lucid.optim.partition import OneProcess, Partition
from lucid.optim.schedule import Schedule, WarmupPolynomialDecay, WarmupStableDecay

__all__ = [
    "LAMB",
    "AdamW",
    "OneProcess",
    "Partition",
    "Schedule",
    "WarmupPolynomialDecay",
    "WarmupStableDecay",
    "clip_scale",
    "global_norm",
    "norm_of",
    "not_finite",
    "squared_gradients",
]
