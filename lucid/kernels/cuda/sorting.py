"""A stable sort of ids, for sums in a fixed order. A CUDA graph can capture it, unlike some libraries' sorts."""

import numpy as np

from lucid.backend import Array
from lucid.kernels.cuda import launching
from lucid.kernels.cuda.arrays import empty, plain
from lucid.kernels.cuda.compiling import Variant, variant
from lucid.kernels.cuda.launching import blocks_of

# The bits of a digit, and the number of its values.
_BITS, _DIGITS = 8, 256
_CHUNK = 512


def form() -> Variant:
    """Return the program of the sort."""
    return variant("sorting", "float32", 1, CHUNK=_CHUNK)


def sorted_by_id(ids: Array, bound: int) -> tuple[Array, Array]:
    """Return ids [N], integers in [0, bound), in rising order, and the former index of each: int64 [N] both.

    Equal ids keep their order.
    """
    ids, rows = plain(ids, np.int64), None
    count, chunks = np.int64(len(ids)), blocks_of(len(ids), _CHUNK)
    counts = empty(ids, chunks, _DIGITS, dtype=np.int32)
    for shift in map(np.int32, range(0, max(1, (bound - 1).bit_length()), _BITS)):
        sorted_ids, sorted_rows = empty(ids, len(ids), dtype=np.int64), empty(ids, len(ids), dtype=np.int64)
        launching.launch(form(), "count_digits", (chunks,), (_DIGITS,), ids, counts, count, shift)
        launching.launch(
            form(), "place_by_digit", (chunks,), (_DIGITS,), ids, rows, counts, sorted_ids, sorted_rows, count, shift
        )
        ids, rows = sorted_ids, sorted_rows
    assert rows is not None
    return ids, rows
