"""Optimizers over the flat buffers, clipping, and the schedule of the learning rate."""

from typing import TYPE_CHECKING

from lucid.errors import no_such_name
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

if not TYPE_CHECKING:  # to mypy every name would be there

    def __getattr__(name):
        raise no_such_name(__name__, name, __all__)
