"""Flat buffers: all values in one allocation, all gradients in another; the parameters are views into them.

A gradient is thus written by backward where the communicator reduces it and the optimizer reads it: a bucket is a
slice, an optimizer step one pass. The order is that in which backward finishes them, more or less: reverse order of
registration, first all parameters with weight decay, then those without; the tied word embedding, registered first,
closes the first region.

For sums, and for sharing work among ranks, the buffers are cut into blocks. None holds parts of two parameters, so that
norms of single parameters, too, are sums over whole blocks.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from lucid import backend, kernels
from lucid.backend import Array
from lucid.nn.module import Module, Parameter

Allocate = Callable[[int, np.dtype], Array]

_ALIGNMENT_BYTES = 256
# Only parameters of a multiple of so many elements are joined. Kernels read as many at once as all bounds of blocks
# allow, and that must not depend on which blocks a process has: sums are made in another order for each number.
_JOINED_MULTIPLE = 8

# Elements of a block, at most.
BLOCK = 16_384


@dataclass(frozen=True)
class Segment:
    """Where one parameter lies in the flat buffers: elements [start, stop), with `padding` zeros behind them."""

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]
    decay: bool
    padding: int = 0


@dataclass(frozen=True)
class UpdateSlice:
    """Adjacent blocks that an optimizer updates together, all with weight decay or all without.

    `elements` and `blocks` are its position in the flat buffers, `state` its position in the optimizer's state, which
    may cover only some of the blocks. `bounds` [blocks + 1] are the bounds of its blocks, counted from its start.
    """

    elements: slice
    blocks: slice
    bounds: Array
    state: slice
    decay: bool


@dataclass
class FlatParameters:
    """The flat buffers of a module: `values` and `gradients` [N], and the segments in buffer order.

    Segments start on multiples of 256 bytes, but for one that is joined to that before it (`Module.join`), which starts
    where that stops, if all that are joined have a multiple of 8 elements. What lies between segments is zero and stays
    zero; behind some lie whole rows of it, for who takes `Parameter.padded`. `bounds` (int64 [blocks + 1]) are those of
    the blocks; those of segment i begin at number `first_blocks[i]`.

    `bfloat16_copy` [N], or None, is a copy of the values in bfloat16. Operations compute with the copy of parameters
    that have two or more dimensions, and linear maps with the copy of biases too. An optimizer's step and
    `load_state_dict` keep it up to date; code that writes `values` in another way, such as a broadcast, must call
    `round` afterwards.
    """

    values: Array
    gradients: Array
    segments: tuple[Segment, ...]
    parameters: tuple[Parameter, ...]
    bounds: Array
    first_blocks: Array
    bfloat16_copy: Array | None = None

    @property
    def decay_stop(self) -> int:
        """Where the region with weight decay ends and that without begins."""
        return next((segment.start for segment in self.segments if not segment.decay), len(self.values))

    def update_slices(self, start: int, stop: int, state_start: int) -> Iterator[UpdateSlice]:
        """Cut elements [start, stop), which are whole blocks, where weight decay ends.

        The optimizer's state for them starts at `state_start`.
        """
        border = min(max(start, self.decay_stop), stop)
        for first, last, decay in ((start, border, True), (border, stop, False)):
            if first < last:
                blocks = slice(*np.searchsorted(self.bounds, (first, last)).tolist())
                bounds = self.bounds[blocks.start : blocks.stop + 1] - first
                state = slice(state_start + first - start, state_start + last - start)
                yield UpdateSlice(slice(first, last), blocks, bounds, state, decay)

    def round(self) -> None:
        """Bring the copy in bfloat16 up to date with the values, if there is one."""
        if self.bfloat16_copy is not None:
            kernels.of(self.values).round_to_bfloat16(self.values, self.bfloat16_copy)

    def zero_grad(self) -> None:
        """Forget all gradients; the buffer is overwritten by the next backward, not cleared now."""
        for parameter in self.parameters:
            parameter.zero_grad()

    @property
    def has_gradients(self) -> bool:
        """Whether gradients are set: all of them, or none. Raises `RuntimeError` if some are and others are not."""
        count = sum(parameter.has_gradient for parameter in self.parameters)
        if count not in (0, len(self.parameters)):
            raise RuntimeError(
                f"{count} of {len(self.parameters)} parameters have a gradient: a backward was interrupted"
            )
        return count > 0

    def mark_gradients(self) -> None:
        """Take all gradients as set: a replayed backward has written them, which runs no Python and marks none."""
        for parameter in self.parameters:
            parameter.mark_gradient()

    def zero_unset_gradients(self) -> None:
        """Write zeros where backward has not been since `zero_grad`."""
        for parameter in self.parameters:
            if not parameter.has_gradient:
                parameter.accumulate(backend.array_module(parameter.data).zeros((), parameter.dtype))

    def collect_gradients_in(self, buffer: Array) -> None:
        """Let the next backward write into `buffer` [N], laid out like `gradients`, and forget the gradients so far."""
        for part, parameter in zip(self.padded_views(buffer), self.parameters, strict=True):
            parameter.collect_gradient_in(part)

    def views(self, buffer: Array) -> dict[str, Array]:
        """Return the parameters' parts of `buffer` [N], which is laid out like `values`, by name and in shape."""
        return {part.name: buffer[part.start : part.stop].reshape(part.shape) for part in self.segments}

    def padded_views(self, buffer: Array) -> list[Array]:
        """Return the parameters' parts of `buffer` [N] with the rows of their padding, in the order of the buffers."""
        return [
            buffer[part.start : part.stop + part.padding].reshape(-1 if part.shape else (), *part.shape[1:])
            for part in self.segments
        ]


def flatten(
    module: Module,
    allocate: Allocate | None = None,
    allocate_values: Allocate | None = None,
    bfloat16_copy: bool = False,
) -> FlatParameters:
    """Move the parameters of `module`, all of one dtype and device, into flat buffers.

    `allocate(count, dtype)` returns a zeroed 1-D array: ordinary memory by default, or a communicator's.
    `allocate_values` does so for the values, if they are to be elsewhere than the gradients. Parameters with two or
    more dimensions get weight decay, biases and LayerNorm weights do not (Devlin et al., 2018). `bfloat16_copy`
    gives all parameters a copy in bfloat16: see `FlatParameters`.
    """
    like = next(module.parameters()).data
    dtype, xp = like.dtype, backend.array_module(like)
    allocate = allocate or (lambda count, dtype: xp.zeros(count, dtype))
    parameters, segments, count = _layout(module, _ALIGNMENT_BYTES // dtype.itemsize)
    # Gradients first: if the allocator has good memory for one of the two only, that is the one which travels.
    gradient_buffer, value_buffer = allocate(count, dtype), (allocate_values or allocate)(count, dtype)
    blocks = _blocks(segments, count)
    flat = FlatParameters(value_buffer, gradient_buffer, tuple(segments), tuple(parameters), *blocks)
    views = flat.padded_views(flat.values), flat.padded_views(flat.gradients)
    for parameter, values, gradients in zip(parameters, *views, strict=True):
        parameter.use_buffers(values, gradients)
    if bfloat16_copy:
        flat.bfloat16_copy = xp.zeros(count, ml_dtypes.bfloat16)
        flat.round()
        for parameter, copy in zip(parameters, flat.padded_views(flat.bfloat16_copy), strict=True):
            parameter.use_bfloat16_copy(copy)
    # The arrays that the parameters had before are as large as the model.
    backend.return_freed_memory()
    return flat


def _layout(module: Module, alignment: int) -> tuple[list[Parameter], list[Segment], int]:
    """Return the parameters in the order of the buffers, where each lies, and the number of elements in all."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = {id(parameter): group for group in module.joined_parameters() for parameter in group}
    parameters: list[Parameter] = []
    segments: list[Segment] = []
    stop, last_first = 0, list(module.parameters())[::-1]
    for decay in (True, False):
        for parameter in last_first:
            if (parameter.ndim >= 2) != decay or id(parameter) not in names:
                continue
            stop = -(-stop // alignment) * alignment
            group = groups.get(id(parameter), (parameter,))
            if any(member.size % _JOINED_MULTIPLE for member in group):
                group = (parameter,)
            for member in group:
                # Each is laid once; one that has been replaced in its module is none of the parameters any more.
                name = names.pop(id(member), None)
                if name is not None:
                    padding = -len(member) % member.row_multiple * math.prod(member.shape[1:]) if member.ndim else 0
                    segments.append(Segment(name, stop, stop + member.size, member.shape, decay, padding))
                    parameters.append(member)
                    stop += member.size + padding
    return parameters, segments, -(-stop // alignment) * alignment


def _blocks(segments: list[Segment], count: int) -> tuple[Array, Array]:
    """Return the bounds of the blocks of `count` elements, and the number of each segment's first block.

    A segment's blocks include its padding, and the last one the gap behind it: zeros.
    """
    starts = [np.arange(segment.start, segment.stop + segment.padding, BLOCK) for segment in segments]
    first_blocks = np.cumsum([0, *map(len, starts)])[:-1]
    return np.append(np.concatenate(starts), count), first_blocks
