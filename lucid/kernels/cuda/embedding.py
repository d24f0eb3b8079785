"""Look-ups in a table, and the table's gradient in a fixed order: rows are sorted by id before they are summed."""

import numpy as np

from lucid.backend import Array, array_module
from lucid.kernels.cuda import launching
from lucid.kernels.cuda.arrays import as_rows, empty, plain
from lucid.kernels.cuda.compiling import Variant, variant
from lucid.kernels.cuda.launching import ROWS, blocks_of, vector_width
from lucid.kernels.cuda.sorting import sorted_by_id

_THREADS = 128
_NO_ID = -1


def form(element: str, vector: int, out: str = "float32") -> Variant:
    """Return the program of these kernels. Gradients of rows have the type `element`, their sums the type `out`."""
    return variant("embedding", element, vector, ROWS=ROWS, THREADS=_THREADS, OUT_IS_FLOAT=int(out == "float32"))


def embedding(table: Array, ids: Array, addend: Array | None = None) -> Array:
    if addend is not None and addend.dtype != table.dtype:
        return addend + embedding(table, ids)
    table, ids = plain(table), plain(array_module(table).asarray(ids), np.int64)
    addend, width = None if addend is None else plain(addend), table.shape[1]
    y, vector = empty(table, *ids.shape, width, dtype=table.dtype), vector_width(width, table, addend)
    grid = ids.size, blocks_of(width, _THREADS * vector)
    arguments = table, ids, addend, y, np.int32(width)
    launching.launch(form(table.dtype.name, vector), "look_up", grid, (_THREADS,), *arguments)
    return y


def embedding_gradient(gradient: Array, ids: Array, out: Array, accumulate: bool, padding_id: int | None) -> None:
    rows, xp = as_rows(gradient), array_module(gradient)
    if not accumulate:
        out[...] = 0
    sorted_ids, order = sorted_by_id(xp.asarray(ids).reshape(-1), len(out))
    count, width = rows.shape
    vector = vector_width(width, rows, out)
    grid = blocks_of(count, ROWS), blocks_of(width, _THREADS * vector)
    parts = empty(rows, grid[0], 2, width)
    program = form(rows.dtype.name, vector, out.dtype.name)
    padding, shape = np.int64(_NO_ID if padding_id is None else padding_id), (np.int64(count), np.int32(width))
    launching.launch(
        program, "add_within_chunks", grid, (_THREADS,), rows, sorted_ids, order, padding, out, parts, *shape
    )
    launching.launch(program, "add_across_chunks", grid, (_THREADS,), sorted_ids, padding, out, parts, *shape)
