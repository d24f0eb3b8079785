"""Attention by cuDNN, through NVIDIA's front end for it: in bfloat16, with all rows as keys, and without dropout.

cuDNN would drop by the sequence's number in the batch, in a layout of its own: losses would depend on the number of
ranks. Rows stay as they are, sequence after sequence: cuDNN is told by tables in device memory where each sequence
begins and how long it is. It makes its sums in one order, as `use_deterministic_algorithm` asks for.

A graph, as cuDNN calls a product with all that belongs to it, is built and compiled once for a number of sequences, the
length of the grid, and heads. https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Attention.html
"""

import functools
import math
from enum import IntEnum
from typing import Any

import ml_dtypes
import numpy as np

from lucid.backend import Array, address, array_module
from lucid.errors import ConfigError
from lucid.kernels.cuda.arrays import aligned, empty
from lucid.kernels.cuda.ragged import ragged_tables
from lucid.kernels.sequences import Sequences

# cuDNN's kernels take heads whose number of columns is a multiple of this, and no more than so many.
_COLUMNS, _MOST_COLUMNS = 8, 128
# Micro-batches are filled up with empty sequences, of which older ones made NaN:
# https://github.com/NVIDIA/cudnn-frontend/issues/943
_FIRST_VERSION = 92_500
# A run has some numbers of sequences that its micro-batches are filled up to, each of which has a graph.
_MOST_GRAPHS = 64


class Operand(IntEnum):
    """The numbers by which the arrays of a graph are known."""

    QUERY = 1
    KEY = 2
    VALUE = 3
    OUTPUT = 4
    LOG_SUMS = 5
    BY_OUTPUT = 6
    BY_QUERY = 7
    BY_KEY = 8
    BY_VALUE = 9
    LENGTHS = 10
    JOINED_OFFSETS = 11
    OUTPUT_OFFSETS = 12


def load() -> None:
    """Raise `ConfigError` if cuDNN, its front end or a GPU that it can use is not there, or cuDNN is too old."""
    try:
        import cudnn

        version = cudnn.backend_version()
        _handle(_device())
    except Exception as error:
        raise ConfigError(
            f"attention by cuDNN needs cuDNN and its front end, which cannot be used here ({error}): "
            "pip install -e '.[cuda13]' (or cuda12), or set train.attention to own"
        ) from error
    if version < _FIRST_VERSION:
        raise ConfigError(
            f"attention by cuDNN needs cuDNN {_dotted(_FIRST_VERSION)} or later, and this is {_dotted(version)}: "
            "pip install -e '.[cuda13]' (or cuda12), or set train.attention to own"
        )


def _dotted(version: int) -> str:
    return f"{version // 10_000}.{version % 10_000 // 100}.{version % 100}"


def takes(joined: Array, sequences: Sequences, heads: int) -> bool:
    """Return whether cuDNN can compute this attention, of rows `joined` [N, 3C], where nothing is dropped."""
    head = joined.shape[1] // 3 // heads
    is_wide_enough = head % _COLUMNS == 0 and head <= _MOST_COLUMNS
    return joined.dtype == ml_dtypes.bfloat16 and sequences.mask is None and is_wide_enough


def attention(joined: Array, sequences: Sequences, heads: int) -> tuple[Array, tuple[Array, ...]]:
    """Return (output [N, C], what `attention_gradient` needs) for `joined` [N, 3C] in bfloat16."""
    joined, C = aligned(joined), joined.shape[1] // 3
    output = empty(joined, len(joined), C, dtype=joined.dtype)
    log_sums = empty(joined, sequences.count, heads, sequences.length)
    tables = ragged_tables(joined, sequences, 3 * C, C)
    shape = sequences.count, sequences.length, heads, C // heads
    pointers = {Operand.OUTPUT: address(output), Operand.LOG_SUMS: address(log_sums)}
    _execute(_forward(_device(), *shape), _parts(joined, C) | pointers | _table_pointers(tables))
    return output, (output, log_sums, *tables)


def attention_gradient(
    gradient: Array, joined: Array, saved: tuple[Array, ...], sequences: Sequences, heads: int
) -> Array:
    """Return the gradient by `joined` [N, 3C] for gradient [N, C]; `saved` is what `attention` returned."""
    gradient, joined, C = aligned(gradient), aligned(joined), joined.shape[1] // 3
    output, log_sums, *tables = saved
    by_joined = array_module(joined).empty_like(joined)
    shape = sequences.count, sequences.length, heads, C // heads
    by_parts = zip((Operand.BY_QUERY, Operand.BY_KEY, Operand.BY_VALUE), _parts(by_joined, C).values(), strict=True)
    pointers = {
        Operand.OUTPUT: address(output),
        Operand.LOG_SUMS: address(log_sums),
        Operand.BY_OUTPUT: address(gradient),
        **dict(by_parts),
    }
    _execute(_backward(_device(), *shape), _parts(joined, C) | pointers | _table_pointers(tuple(tables)))
    return by_joined


def _parts(joined: Array, width: int) -> dict[Operand, int]:
    """Return where the queries, keys and values of `joined` begin."""
    parts = Operand.QUERY, Operand.KEY, Operand.VALUE
    return {part: address(joined) + number * width * joined.itemsize for number, part in enumerate(parts)}


def _table_pointers(tables: tuple[Array, ...]) -> dict[Operand, int]:
    names = Operand.LENGTHS, Operand.JOINED_OFFSETS, Operand.OUTPUT_OFFSETS
    return {name: address(table) for name, table in zip(names, tables, strict=True)}


def _execute(graph: Any, pointers: dict[Operand, int]) -> None:
    """Run a built graph on CuPy's current stream. What it works in is free again for what comes later on the stream."""
    import cudnn
    import cupy

    handle = _handle(_device())
    cudnn.set_stream(handle=handle, stream=cupy.cuda.get_current_stream().ptr)
    room = cupy.empty(max(1, graph.get_workspace_size()), np.uint8)
    graph.execute({int(name): pointer for name, pointer in pointers.items()}, room.data.ptr, handle=handle)


def _device() -> int:
    import cupy

    return int(cupy.cuda.Device().id)


@functools.cache
def _handle(device: int) -> Any:
    """Return cuDNN's handle for the current device, which is `device`."""
    import cudnn

    return cudnn.create_handle()


@functools.lru_cache(maxsize=_MOST_GRAPHS)
def _forward(device: int, sequences: int, length: int, heads: int, head: int) -> Any:
    graph = forward_graph(sequences, length, heads, head, handle=_handle(device))
    graph.build_plans()
    return graph


@functools.lru_cache(maxsize=_MOST_GRAPHS)
def _backward(device: int, sequences: int, length: int, heads: int, head: int) -> Any:
    graph = backward_graph(sequences, length, heads, head, handle=_handle(device))
    graph.build_plans()
    return graph


def forward_graph(sequences: int, length: int, heads: int, head: int, **where: Any) -> Any:
    """Return the graph of attention, checked but without a plan, for a handle or a description of a device."""
    layout = _Layout(sequences, length, heads, head, where)
    output, log_sums = layout.graph.sdpa(
        q=layout.joined(Operand.QUERY), k=layout.joined(Operand.KEY), v=layout.joined(Operand.VALUE),
        generate_stats=True, **layout.settings,
    )  # fmt: skip
    layout.is_output(output, Operand.OUTPUT)
    layout.are_log_sums(log_sums.set_output(True).set_uid(int(Operand.LOG_SUMS)))
    return layout.checked()


def backward_graph(sequences: int, length: int, heads: int, head: int, **where: Any) -> Any:
    """Return the graph of the gradient, as `forward_graph` does."""
    layout = _Layout(sequences, length, heads, head, where)
    log_sums = layout.graph.tensor(dim=[1, 1, 1, 1], name="log_sums").set_uid(int(Operand.LOG_SUMS))
    gradients = layout.graph.sdpa_backward(
        q=layout.joined(Operand.QUERY), k=layout.joined(Operand.KEY), v=layout.joined(Operand.VALUE),
        o=layout.output(Operand.OUTPUT), dO=layout.output(Operand.BY_OUTPUT), stats=layout.are_log_sums(log_sums),
        use_deterministic_algorithm=True, **layout.settings,
    )  # fmt: skip
    for gradient, name in zip(gradients, (Operand.BY_QUERY, Operand.BY_KEY, Operand.BY_VALUE), strict=True):
        layout.is_joined(gradient, name)
    return layout.checked()


class _Layout:
    """A graph, and how its arrays lie in memory: S sequences of up to T rows, each with H heads of D columns."""

    def __init__(self, sequences: int, length: int, heads: int, head: int, where: dict[str, Any]) -> None:
        import cudnn

        self.types, self.modes = cudnn.data_type, cudnn.heur_mode
        self.shape = [sequences, heads, length, head]
        self.graph = cudnn.pygraph(
            io_data_type=self.types.BFLOAT16,
            intermediate_data_type=self.types.FLOAT,
            compute_data_type=self.types.FLOAT,
            **where,
        )
        lengths = self._table(Operand.LENGTHS, sequences, self.types.INT32)
        self._offsets = {
            3: self._table(Operand.JOINED_OFFSETS, sequences + 1, self.types.INT64),
            1: self._table(Operand.OUTPUT_OFFSETS, sequences + 1, self.types.INT64),
        }
        self.settings = {
            "attn_scale": 1 / math.sqrt(head),
            "use_padding_mask": True,
            "seq_len_q": lengths,
            "seq_len_kv": lengths,
        }

    def _table(self, name: Operand, count: int, data_type: Any) -> Any:
        table = self.graph.tensor(dim=[count, 1, 1, 1], stride=[1, 1, 1, 1], data_type=data_type, name=name.name)
        return table.set_uid(int(name))

    def _strides(self, parts: int) -> list[int]:
        """The strides of an array [N, parts x H x D]; that of sequences is what tables say."""
        _, H, T, D = self.shape
        return [T * parts * H * D, D, parts * H * D, 1]

    def _rows(self, name: Operand, parts: int) -> Any:
        rows = self.graph.tensor(
            dim=self.shape, stride=self._strides(parts), ragged_offset=self._offsets[parts], name=name.name
        )
        return rows.set_uid(int(name))

    def joined(self, name: Operand) -> Any:
        """A third of the columns of rows [N, 3C]."""
        return self._rows(name, 3)

    def output(self, name: Operand) -> Any:
        """Rows [N, C]."""
        return self._rows(name, 1)

    def _is_result(self, tensor: Any, name: Operand, parts: int) -> None:
        tensor.set_output(True).set_dim(self.shape).set_stride(self._strides(parts)).set_uid(int(name))
        tensor.set_ragged_offset(self._offsets[parts])

    def is_joined(self, tensor: Any, name: Operand) -> None:
        """Say that a result lies as `joined`."""
        self._is_result(tensor, name, 3)

    def is_output(self, tensor: Any, name: Operand) -> None:
        """Say that a result lies as `output`."""
        self._is_result(tensor, name, 1)

    def are_log_sums(self, tensor: Any) -> Any:
        """Say that an array is float32 [S, H, T]."""
        S, H, T, _ = self.shape
        return tensor.set_data_type(self.types.FLOAT).set_dim([S, H, T, 1]).set_stride([H * T, T, 1, 1])

    def checked(self) -> Any:
        """The graph, for which there is a kernel."""
        self.graph.validate()
        self.graph.build_operation_graph()
        self.graph.create_execution_plans([self.modes.A, self.modes.FALLBACK])
        self.graph.check_support()
        return self.graph
