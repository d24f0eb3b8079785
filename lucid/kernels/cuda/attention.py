"""Attention by kernels that never store the scores.

Dao et al., "FlashAttention", 2022; Dao, "FlashAttention-2", 2023. Forward saves for backward the output, the logarithm
of the sum of each row's exponentials, and one bit for each probability: whether dropout keeps it.
"""

import math

import numpy as np

from lucid.backend import Array, array_module
from lucid.errors import ConfigError
from lucid.kernels.arguments import Dropout
from lucid.kernels.cuda import launching
from lucid.kernels.cuda.arrays import aligned, empty, plain
from lucid.kernels.cuda.compiling import Variant, variant
from lucid.kernels.cuda.dropout_arguments import dropout_arguments
from lucid.kernels.cuda.launching import WARP, blocks_of
from lucid.kernels.sequences import TILE, Sequences

_MOST_COLUMNS = 128
# The bits of kept probabilities are stored in tiles of this many rows and keys: see `Kept` in attention.cuh.
_KEPT_ROWS, _KEPT_KEYS = 16, 64
# Tensor cores multiply pieces of this many columns.
_PIECE = 16


def form(program: str, element: str, head: int, whole: bool) -> Variant:
    """Return a program, "attention" or "attention_gradient", for heads of `head` columns.

    `whole` says that each line of scores begins with a whole block of random words: its length is a multiple of 4. Each
    warp of a block works on 16 rows, against `STEP` other rows at a time: as many as fit in 48 KB of shared memory.
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
    joined: Array, sequences: Sequences, heads: int, dropout: Dropout
) -> tuple[Array, tuple[Array | None, ...]]:
    joined = aligned(joined)
    output = empty(joined, len(joined), joined.shape[1] // 3, dtype=joined.dtype)
    log_sums, kept = empty(joined, heads, len(joined)), None
    key_blocks = _key_blocks(sequences)
    if dropout.coordinates is not None:
        blocks = heads, len(sequences.tiles) * TILE // _KEPT_ROWS, key_blocks
        kept = empty(joined, *blocks, _KEPT_ROWS * _KEPT_KEYS // 32, dtype=np.uint32)
    arrays = joined, *_keys(joined, sequences, heads), output, log_sums, kept
    sizes = np.uint32(key_blocks), np.int64(len(joined)), np.int32(sequences.length)
    _launch("attention", joined, sequences, heads, *arrays, *sizes, *dropout_arguments(joined, dropout))
    return output, (output, log_sums, kept)


def attention_gradient(
    gradient: Array, joined: Array, saved: tuple[Array, ...], sequences: Sequences, heads: int, dropout: Dropout
) -> Array:
    gradient, joined, (output, log_sums, kept) = aligned(gradient), aligned(joined), saved
    by_joined, along = array_module(joined).empty_like(joined), empty(joined, heads, len(joined))
    _, positions, *_, keep_scale = dropout_arguments(joined, dropout)
    kept_weights = kept, np.uint32(_key_blocks(sequences)), positions, keep_scale
    keys, rows = _keys(joined, sequences, heads), np.int64(len(joined))
    by_query = gradient, joined, output, log_sums, *keys, *kept_weights, by_joined, along, rows
    _launch("attention_query_gradient", joined, sequences, heads, *by_query)
    by_key_and_value = gradient, joined, log_sums, along, *keys, *kept_weights, by_joined, rows
    _launch("attention_key_value_gradient", joined, sequences, heads, *by_key_and_value)
    return by_joined


def _key_blocks(sequences: Sequences) -> int:
    """Return how many blocks of `_KEPT_KEYS` keys a row has at most."""
    return blocks_of(sequences.length, _KEPT_KEYS)


def _head(joined: Array, heads: int) -> int:
    return joined.shape[1] // 3 // heads


def _keys(joined: Array, sequences: Sequences, heads: int) -> tuple[Array, Array | None, np.float32]:
    """Return the tiles of the sequences, the mask of the rows that are keys, and the scale of the scores."""
    mask = None if sequences.mask is None else plain(sequences.mask, np.bool_)
    return plain(sequences.tiles, np.int64), mask, np.float32(1 / math.sqrt(_head(joined, heads)))


def _launch(
    kernel: str, joined: Array, sequences: Sequences, heads: int, *arguments: Array | np.generic | None
) -> None:
    head, program = _head(joined, heads), "attention" if kernel == "attention" else "attention_gradient"
    if head > _MOST_COLUMNS:
        raise ConfigError(
            f"attention heads of {head:,} columns are too wide for the CUDA kernels, which take {_MOST_COLUMNS}"
        )
    chosen = form(program, joined.dtype.name, head, sequences.length % 4 == 0)
    warps = dict(chosen.constants)["WARPS"]
    grid = len(sequences.tiles), heads, TILE // (16 * warps)
    launching.launch(chosen, kernel, grid, (WARP * warps,), *arguments)
