"""Look-ups in a table of embeddings."""

from lucid.backend import Array, array_module
from lucid.kernels.reference.rows import as_rows


def embedding(table: Array, ids: Array, addend: Array | None = None) -> Array:
    rows = array_module(table).take(table, ids, axis=0)
    return rows if addend is None else addend + rows


def embedding_gradient(gradient: Array, ids: Array, out: Array, accumulate: bool, padding_id: int | None) -> None:
    ids, rows = ids.reshape(-1), as_rows(gradient)
    if not accumulate:
        out[...] = 0
    if padding_id is not None:
        counted = ids != padding_id
        ids, rows = ids[counted], rows[counted]
    array_module(out).add.at(out, ids, rows)
