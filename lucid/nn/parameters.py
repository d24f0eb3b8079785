"""Flat buffers: all values in one allocation, all gradients in another; the parameters are views into them.

A gradient is thus written by backward where the communicator reduces it and the optimizer reads it: a bucket is a
slice, an optimizer step one pass. The order is that in which backward finishes them, more or less: reverse order of
registration, first all parameters with weight decay, then those without; the tied word embedding, registered first,
closes the first region.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lucid import backend
from lucid.backend import Array
from lucid.nn.module import Module, Parameter

Allocate = Callable[[int, np.dtype], Array]

_ALIGNMENT_BYTES = 256


@dataclass(frozen=True)
class Segment:
    """Where one parameter lies in the flat buffers: elements [start, stop)."""

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]
    decay: bool


@dataclass(frozen=True)
class FlatParameters:
    """The flat buffers of a module: `values` and `gradients` [N], and the segments in buffer order.

    Segments start on multiples of 256 bytes; what lies between them is zero and stays zero.
    """

    values: Array
    gradients: Array
    segments: tuple[Segment, ...]
    parameters: tuple[Parameter, ...]

    @property
    def decay_stop(self) -> int:
        """Where the region with weight decay ends and that without begins."""
        return next((segment.start for segment in self.segments if not segment.decay), len(self.values))

    def zero_grad(self) -> None:
        """Forget all gradients; the buffer is overwritten by the next backward, not cleared now."""
        for parameter in self.parameters:
            parameter.zero_grad()

    def zero_unset_gradients(self) -> None:
        """Write zeros where backward has not been since `zero_grad`."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.accumulate(backend.array_module(parameter.data).zeros((), parameter.dtype))

    def collect_gradients_in(self, buffer: Array) -> None:
        """Let the next backward write into `buffer` [N], laid out like `gradients`, and forget the gradients so far."""
        for segment, parameter in zip(self.segments, self.parameters, strict=True):
            parameter.collect_gradient_in(buffer[segment.start : segment.stop].reshape(segment.shape))

    def views(self, buffer: Array) -> dict[str, Array]:
        """Return the parameters' parts of `buffer` [N], which is laid out like `values`, by name and in shape."""
        return {part.name: buffer[part.start : part.stop].reshape(part.shape) for part in self.segments}


def flatten(module: Module, allocate: Allocate | None = None) -> FlatParameters:
    """Move the parameters of `module`, all of one dtype and device, into flat buffers.

    `allocate(count, dtype)` returns a zeroed 1-D array: ordinary memory by default, or a communicator's.
    Parameters with two or more dimensions get weight decay, biases and LayerNorm weights do not (Devlin et al., 2018).
    """
    named = list(module.named_parameters())
    dtype = named[0][1].dtype
    xp = backend.array_module(named[0][1].data)
    allocate = allocate or (lambda count, dtype: xp.zeros(count, dtype))
    alignment = _ALIGNMENT_BYTES // dtype.itemsize

    segments: list[Segment] = []
    parameters: list[Parameter] = []
    stop = 0
    for decay in (True, False):
        for name, parameter in reversed(named):
            if (parameter.ndim >= 2) == decay:
                start = -(-stop // alignment) * alignment
                stop = start + parameter.size
                segments.append(Segment(name, start, stop, parameter.shape, decay))
                parameters.append(parameter)

    count = -(-stop // alignment) * alignment
    # Gradients first: if the allocator has good memory for one of the two only, that is the one which travels.
    gradient_buffer, value_buffer = allocate(count, dtype), allocate(count, dtype)
    flat = FlatParameters(value_buffer, gradient_buffer, tuple(segments), tuple(parameters))
    values, gradients = flat.views(flat.values), flat.views(flat.gradients)
    for segment, parameter in zip(segments, parameters, strict=True):
        parameter.use_buffers(values[segment.name], gradients[segment.name])
    # The arrays that the parameters had before are as large as the model.
    backend.return_freed_memory()
    return flat
