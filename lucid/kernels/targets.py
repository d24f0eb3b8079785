"""Where the gradients of parameters go: kernels write them to where they are needed, or add them there."""

from typing import NamedTuple

from lucid.backend import Array


class Target(NamedTuple):
    """An array that gets a gradient of its shape: it is overwritten, or added to if `accumulate` says so."""

    out: Array
    accumulate: bool


def put(gradient: Array, target: Target | None) -> None:
    """Write or add a gradient to its target, if there is one."""
    if target is None:
        return
    out, accumulate = target
    if accumulate:
        out += gradient
    else:
        out[...] = gradient
