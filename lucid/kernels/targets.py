"""The destinations of parameters' gradients, to which kernels write or add."""

from typing import NamedTuple

from lucid.backend import Array


class Target(NamedTuple):
    """The array that receives a gradient of its shape; `accumulate` says whether to add or to overwrite."""

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
