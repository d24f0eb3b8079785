"""The held-out samples of a corpus, on which runs are evaluated."""

from dataclasses import dataclass

from lucid.backend import Array
from lucid.data import Corpus, Sampler


@dataclass(frozen=True)
class HeldOut:
    """The held-out samples of a corpus. `share` is its share in training, None if it is evaluated only.

    `training` is its training split, and `token_losses` are the `frequency_losses` of that. `making` says how the
    sampler makes the samples, in JSON.
    """

    name: str
    share: float | None
    sampler: Sampler
    training: Corpus
    token_losses: Array
    making: str
