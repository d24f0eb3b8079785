"""Flat buffers: one allocation for the values of all parameters, one for their gradients, and views of both.

Backward writes a gradient where the communicator reduces it and the optimizer reads it: a bucket is a slice, and an
optimizer step is one pass. Parameters lie roughly in the order in which backward finishes them, which is the reverse
order of registration. Those with weight decay come first, and the tied word embedding, registered first, is the last of
these.

Sums and the division of work go by blocks of the buffers. A block belongs to a single parameter, so that the norm of a
parameter is a sum over whole blocks.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

from lucid import backend, kernels
from lucid.backend import Array
from lucid.nn.module import Module, ModuleParameters, Parameter

Allocate = Callable[[int, np.dtype], Array]
# What has parameters, or an iterable of them, perhaps with names.
Parameters: TypeAlias = Module | Iterable[Parameter] | Iterable[tuple[str, Parameter]]

_ALIGNMENT_BYTES = 256
# Only parameters of a multiple of so many elements are joined. The bounds of the blocks limit how many elements kernels
# read at once. That number determines the order of sums, so it must not depend on which blocks a process has.
_JOINED_MULTIPLE = 8

# The most elements of a block.
BLOCK = 16_384


@dataclass(frozen=True)
class Segment:
    """The elements [start, stop) of the flat buffers that hold one parameter; `padding` zeros follow them."""

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

    Segments start on multiples of 256 bytes. The exception are joined parameters (`Module.join`) of a multiple of 8
    elements each, which follow each other without gaps. Elements between segments are zero and stay zero; they include
    the rows that pad a parameter (`Parameter.padded`). `bounds` (int64 [blocks + 1]) are the bounds of the blocks, and
    `first_blocks[i]` is the number of the first block of segment i.

    `bfloat16_copy` [N], or None, is a copy of the values in bfloat16. On a GPU, operations compute with the copy of
    parameters that have two or more dimensions, and linear maps with the copy of biases too. On the CPU, linear maps
    compute with the copy of their weights, and all else with the values. An optimizer's step and `load_state_dict` keep
    it up to date; code that writes `values` in another way, such as a broadcast, must call `round` afterwards.
    """

    values: Array
    gradients: Array
    segments: tuple[Segment, ...]
    parameters: tuple[Parameter, ...]
    bounds: Array
    first_blocks: Array
    bfloat16_copy: Array | None = None
    # Who updates which parameters (`lucid.optim.Partition`), if not this process all of them: for an optimizer that is
    # given the parameters.
    partition: Any = None

    @property
    def decay_stop(self) -> int:
        """The element at which the region without weight decay begins."""
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
        """Round the values into the copy in bfloat16, if there is one."""
        if self.bfloat16_copy is not None:
            kernels.of(self.values).round_to_bfloat16(self.values, self.bfloat16_copy)

    def zero_grad(self) -> None:
        """Forget all gradients. The buffer is not cleared; the next backward overwrites it."""
        for parameter in self.parameters:
            parameter.zero_grad()

    @property
    def has_gradients(self) -> bool:
        """Whether the gradients are set, but for frozen parameters. Raises `RuntimeError` if only some of them are."""
        trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        count = sum(parameter.has_gradient for parameter in trained)
        if count not in (0, len(trained)):
            raise RuntimeError(f"{count} of {len(trained)} parameters have a gradient: a backward was interrupted")
        return count > 0

    def mark_gradients(self) -> None:
        """Mark all gradients as set. A replayed backward writes them without the Python code that marks them."""
        for parameter in self.parameters:
            parameter.mark_gradient()

    def zero_unset_gradients(self) -> None:
        """Write zeros into the gradients that backward has not reached since `zero_grad`."""
        for parameter in self.parameters:
            if not parameter.has_gradient:
                parameter.accumulate(backend.array_module(parameter.data).zeros((), parameter.dtype))

    def collect_gradients_in(self, buffer: Array) -> None:
        """Forget the gradients, and make the next backward write into `buffer` [N], laid out like `gradients`."""
        for view, parameter in zip(self.padded_views(buffer), self.parameters, strict=True):
            parameter.collect_gradient_in(view)

    def views(self, buffer: Array) -> dict[str, Array]:
        """Return views of `buffer` [N], laid out like `values`, by the names and in the shapes of the parameters."""
        return {each.name: buffer[each.start : each.stop].reshape(each.shape) for each in self.segments}

    def padded_views(self, buffer: Array) -> list[Array]:
        """Return the views of `buffer` [N] in the order of the parameters, with the rows that pad them."""
        return [
            buffer[each.start : each.stop + each.padding].reshape(-1 if each.shape else (), *each.shape[1:])
            for each in self.segments
        ]


def named_parameters_of(given: Parameters) -> dict[str, Parameter]:
    """Return parameters by name: those of their module, those in pairs (name, parameter), or else numbers.

    Raises `TypeError` for anything else, and `ValueError` if there are none.
    """
    if isinstance(given, Module | ModuleParameters):
        module = given if isinstance(given, Module) else given.module
        named = dict(module.named_parameters())
    else:
        named, seen = {}, set[Parameter]()
        for number, item in enumerate(given):
            name, parameter = item if isinstance(item, tuple) else (str(number), item)
            if not isinstance(parameter, Parameter):
                raise TypeError(f"expected the parameters of a module, as model.parameters(), got a {_kind(parameter)}")
            if parameter not in seen:
                seen.add(parameter)
                named[name] = parameter
    if not named:
        raise ValueError("there are no parameters")
    return named


def _kind(value: object) -> str:
    groups = " (there are no groups of parameters: those with two or more dimensions get weight decay, others none)"
    return type(value).__name__ + groups * isinstance(value, dict)


def flatten(
    module: Parameters,
    allocate: Allocate | None = None,
    allocate_values: Allocate | None = None,
    bfloat16_copy: bool = False,
    allocate_copy: Allocate | None = None,
) -> FlatParameters:
    """Move the parameters of `module`, or these parameters, all of one dtype and device, into flat buffers.

    `allocate(count, dtype)` returns a zeroed 1-D array in the memory of a communicator, for example. `allocate_values`
    does the same for the values, if their memory is another. `bfloat16_copy` gives the parameters a copy in bfloat16
    (see `FlatParameters`), in ordinary memory or that of `allocate_copy`. Parameters with two or more dimensions get
    weight decay. Biases and LayerNorm weights do not (Devlin et al., 2018), nor do parameters that do not require a
    gradient, which optimizers therefore leave as they are.

    Raises `RuntimeError` if a parameter is in flat buffers already.
    """
    named = named_parameters_of(module)
    for name, parameter in named.items():
        if parameter.in_flat_buffers:
            raise RuntimeError(
                f"{name} is in flat buffers already, on which an optimizer or DistributedDataParallel works: go on "
                "with these, or load the module's state_dict() into another module"
            )
    like = next(iter(named.values())).data
    dtype, xp = like.dtype, backend.array_module(like)
    allocate = allocate or (lambda count, dtype: xp.zeros(count, dtype))
    segments, count = _layout(named, _ALIGNMENT_BYTES // dtype.itemsize)
    # Gradients first, because they travel: the allocator may have suitable memory for one of the two only.
    gradient_buffer, value_buffer = allocate(count, dtype), (allocate_values or allocate)(count, dtype)
    blocks = _blocks(segments.values(), count)
    flat = FlatParameters(value_buffer, gradient_buffer, tuple(segments.values()), tuple(segments), *blocks)
    views = flat.padded_views(flat.values), flat.padded_views(flat.gradients)
    for parameter, values, gradients in zip(flat.parameters, *views, strict=True):
        parameter.use_buffers(values, gradients)
        parameter.flat = flat
    if bfloat16_copy:
        flat.bfloat16_copy = (allocate_copy or xp.zeros)(count, np.dtype(ml_dtypes.bfloat16))
        flat.round()
        for parameter, copy in zip(flat.parameters, flat.padded_views(flat.bfloat16_copy), strict=True):
            if parameter.ndim >= 2 or parameter.device != backend.CPU:
                parameter.use_bfloat16_copy(copy)
    # The earlier arrays of the parameters, now free, are as large as the model.
    backend.return_freed_memory()
    return flat


def _layout(named: Mapping[str, Parameter], alignment: int) -> tuple[dict[Parameter, Segment], int]:
    """Return the segments of the parameters in buffer order, and the number of elements of a buffer."""
    names = {parameter: name for name, parameter in named.items()}
    segments: dict[Parameter, Segment] = {}
    stop, last_registered_first = 0, list(names)[::-1]
    for first in sorted(last_registered_first, key=_decays, reverse=True):
        if first in segments:
            continue
        group = first.joined or (first,)
        if any(member.size % _JOINED_MULTIPLE or _decays(member) != _decays(first) for member in group):
            group = (first,)
        stop = -(-stop // alignment) * alignment
        for member in group:
            # A joined parameter that its module has replaced since has no name.
            if member in names:
                segments[member] = segment = _segment(names[member], member, stop)
                stop = segment.stop + segment.padding
    return segments, -(-stop // alignment) * alignment


def _segment(name: str, parameter: Parameter, start: int) -> Segment:
    shape = parameter.shape
    padding = -len(parameter) % parameter.row_multiple * math.prod(shape[1:]) if shape else 0
    return Segment(name, start, start + parameter.size, shape, _decays(parameter), padding)


def _decays(parameter: Parameter) -> bool:
    # Without decay an update by a gradient of 0 changes nothing.
    return parameter.ndim >= 2 and parameter.requires_grad


def _blocks(segments: Iterable[Segment], count: int) -> tuple[Array, Array]:
    """Return the bounds of the blocks of `count` elements, and the number of each segment's first block.

    The blocks of a segment include its padding, and the last of them the gap behind it.
    """
    starts = [np.arange(segment.start, segment.stop + segment.padding, BLOCK) for segment in segments]
    first_blocks = np.cumsum([0, *map(len, starts)])[:-1]
    return np.append(np.concatenate(starts), count), first_blocks
