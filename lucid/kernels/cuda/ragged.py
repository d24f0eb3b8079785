"""Tables of where sequences lie, made on the device, so that they follow the sequences of each step."""

import numpy as np

from lucid.backend import Array
from lucid.kernels.cuda import launching
from lucid.kernels.cuda.arrays import empty, plain
from lucid.kernels.cuda.compiling import Variant, variant
from lucid.kernels.cuda.launching import blocks_of
from lucid.kernels.sequences import Sequences

_THREADS = 128


def form() -> Variant:
    """Return the program of the tables."""
    return variant("ragged", "float32", 1, THREADS=_THREADS)


def ragged_tables(like: Array, sequences: Sequences, width: int, other_width: int) -> tuple[Array, Array, Array]:
    """Return each sequence's length, int32 [S], and where it begins in arrays [N, width] and [N, other_width].

    The latter are numbers of elements, int64 [S + 1]: the last is where all end. All are on the device of `like`.
    """
    S = sequences.count
    lengths = empty(like, S, dtype=np.int32)
    offsets, other_offsets = (empty(like, S + 1, dtype=np.int64) for _ in range(2))
    launching.launch(
        form(), "ragged_tables", (blocks_of(S + 1, _THREADS),), (_THREADS,),
        plain(sequences.bounds_table, np.int64), np.int32(S), np.int64(width), np.int64(other_width),
        lengths, offsets, other_offsets,
    )  # fmt: skip
    return lengths, offsets, other_offsets
