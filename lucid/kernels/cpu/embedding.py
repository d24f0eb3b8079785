"""The gradient of an embedding table."""

import numpy as np
from numba import types

from lucid.backend import Array
from lucid.kernels.cpu.arrays import as_rows, plain
from lucid.kernels.cpu.compiling import kernel, read, write
from lucid.kernels.cpu.sums import add_to


@kernel(read(2), read(1, types.int64), types.int64, write(2))
def _embedding_gradient(gradient: Array, ids: Array, padding_id: int, out: Array) -> None:
    for row in range(ids.shape[0]):
        if ids[row] != padding_id:
            add_to(out[ids[row]], gradient[row])


def embedding_gradient(gradient: Array, ids: Array, out: Array, accumulate: bool, padding_id: int | None) -> None:
    if not accumulate:
        out[...] = 0
    no_id = -1
    _embedding_gradient(
        as_rows(gradient), plain(ids, np.int64).reshape(-1), no_id if padding_id is None else padding_id, out
    )
