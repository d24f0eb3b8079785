"""Value objects that kernels take: how dropout draws, what an optimizer updates, and by which rule."""

from dataclasses import dataclass
from typing import NamedTuple

from lucid.backend import Array
from lucid.random import Coordinates


@dataclass(frozen=True, slots=True)
class Dropout:
    """Which elements dropout zeroes: each with `probability`; the rest are scaled by 1 / (1 - probability).

    The mask is a function of the purpose, the coordinates and the element's number in its sample (`lucid.random`).
    Without `coordinates` nothing is dropped.
    """

    probability: float = 0.0
    purpose: int = 0
    coordinates: Coordinates | None = None


NO_DROPOUT = Dropout()


@dataclass(frozen=True, slots=True)
class AdamSettings:
    """The constants of AdamW and LAMB: decay rates of the moments, the term added to the root, and weight decay."""

    betas: tuple[float, float]
    epsilon: float
    weight_decay: float


class UpdateBuffers(NamedTuple):
    """The arrays of one optimizer update, each [N] float32; `bfloat16_copy` [N] gets the new values if it is given."""

    values: Array
    gradients: Array
    first_moments: Array
    second_moments: Array
    bfloat16_copy: Array | None = None
