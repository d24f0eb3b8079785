"""The rows of an array."""

from lucid.backend import Array


def as_rows(x: Array) -> Array:
    """Return x [..., C] as [N, C]."""
    return x.reshape(-1, x.shape[-1])
