"""Attention by kernels that never store the scores.

Dao et al., "FlashAttention", 2022; Dao, "FlashAttention-2", 2023. Forward saves for backward the output, the logarithm
of the sum of each row's exponentials, and one bit for each probability: whether dropout keeps it.
"""

import math

import numpy as np

from lucid.backend import Array, array_module
from lucid.errors import ConfigError
from lucid.kernels.cuda import launching
from lucid.kernels.cuda.arrays import aligned, empty, plain
from lucid.kernels.cuda.compiling import Variant, variant
from lucid.kernels.cuda.draws import draws
from lucid.kernels.cuda.launching import WARP, blocks_of
from lucid.kernels.sequences import TILE, Sequences
from lucid.random import Coordinates

_MOST_COLUMNS = 128
# What dropout keeps is stored for so many rows and keys together: see `Kept` in attention.cuh.
_KEPT_ROWS, _KEPT_KEYS = 16, 64
# Tensor cores multiply pieces of so many columns.
_PIECE = 16


def form(program: str, element: str, head: int, whole: bool) -> Variant:
    """Return a program, "attention" or "attention_gradient", for heads of `head` columns.

    `whole` says that lines of scores begin with a block of random words: their length is a multiple of 4. A block of
    threads works on 16 rows a warp, and on `STEP` more at a time, as many as 48 KB of shared memory have room for.
    """
    tensor_cores = element == "bfloat16" and head % _PIECE == 0
    forward = program == "attention"
    if tensor_cores:
        warps = 4 if head <= 96 else 2
        step = (64 if head <= 64 else 32) if forward else (32 if head <= 80 else 16)
    else:
        warps = 4 if head <= 64 else 2
        step = (32 if head <= 64 else 16) if forward else (16 if head <= 64 else 8)
    constants = {"HEAD": head, "WARPS": warps, "STEP": step, "TENSOR_CORES": int(tensor_cores), "WHOLE": int(whole)}
    return variant(program, element, 8 if tensor_cores else 1, **constants)


def attention(
    joined: Array,
    sequences: Sequences,
    heads: int,
    probability: float,
    stream: int,
    coordinates: Coordinates | None,
) -> tuple[Array, tuple[Array | None, ...]]:
    joined = aligned(joined)
    output = empty(joined, len(joined), joined.shape[1] // 3, dtype=joined.dtype)
    log_sums, kept = empty(joined, heads, len(joined)), None
    if coordinates is not None:
        blocks = heads, len(sequences.tiles) * TILE // _KEPT_ROWS, _key_blocks(sequences)
        kept = empty(joined, *blocks, _KEPT_ROWS * _KEPT_KEYS // 32, dtype=np.uint32)
    _launch(
        "attention", "attention", joined, sequences, heads,
        joined, *_keys(joined, sequences, heads), output, log_sums, kept, np.uint32(_key_blocks(sequences)),
        np.int64(len(joined)), np.int32(sequences.length), *draws(joined, probability, stream, coordinates),
    )  # fmt: skip
    return output, (output, log_sums, kept)


def attention_gradient(
    gradient: Array,
    joined: Array,
    saved: tuple[Array, ...],
    sequences: Sequences,
    heads: int,
    probability: float,
    stream: int,
    coordinates: Coordinates | None,
) -> Array:
    gradient, joined, (output, log_sums, kept) = aligned(gradient), aligned(joined), saved
    by_joined, along = array_module(joined).empty_like(joined), empty(joined, heads, len(joined))
    _, positions, *_, keep_scale = draws(joined, probability, stream, coordinates)
    dropped = kept, np.uint32(_key_blocks(sequences)), positions, keep_scale
    keys, rows = _keys(joined, sequences, heads), np.int64(len(joined))
    _launch(
        "attention_gradient", "attention_query_gradient", joined, sequences, heads,
        gradient, joined, output, log_sums, *keys, *dropped, by_joined, along, rows,
    )  # fmt: skip
    _launch(
        "attention_gradient", "attention_key_value_gradient", joined, sequences, heads,
        gradient, joined, log_sums, along, *keys, *dropped, by_joined, rows,
    )  # fmt: skip
    return by_joined


def _key_blocks(sequences: Sequences) -> int:
    """Return how many blocks of `_KEPT_KEYS` keys a row has at most."""
    return blocks_of(sequences.length, _KEPT_KEYS)


def _head(joined: Array, heads: int) -> int:
    return joined.shape[1] // 3 // heads


def _keys(joined: Array, sequences: Sequences, heads: int) -> tuple[Array, Array | None, np.float32]:
    """Return the pieces of the sequences, which rows are keys, and what scores are multiplied by."""
    mask = None if sequences.mask is None else plain(sequences.mask, np.bool_)
    return plain(sequences.tiles, np.int64), mask, np.float32(1 / math.sqrt(_head(joined, heads)))


def _launch(
    program: str, kernel: str, joined: Array, sequences: Sequences, heads: int, *arguments: Array | np.generic | None
) -> None:
    head = _head(joined, heads)
    if head > _MOST_COLUMNS:
        raise ConfigError(
            f"attention heads of {head:,} columns are too wide for the CUDA kernels, which take {_MOST_COLUMNS}"
        )
    chosen = form(program, joined.dtype.name, head, sequences.length % 4 == 0)
    warps = dict(chosen.constants)["WARPS"]
    grid = len(sequences.tiles), heads, TILE // (16 * warps)
    launching.launch(chosen, kernel, grid, (WARP * warps,), *arguments)
