"""Sums of arrays in this process's reach, in blocks that fit into the cache, along the exact reduction's tree.

Neighbours are added first: ((a0 + a1) + (a2 + a3)) + ..., so whoever adds gets the same bits.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from lucid.backend import Array

# Of all arrays together: so much stays in a core's cache between being added and being written to the last array.
_BLOCK_BYTES = 2**19


def all_reduce(arrays: Sequence[Array]) -> None:
    """Replace each of `arrays` by the sum of them all."""
    for block in blocks(arrays):
        _add_along_tree(block, block[0::2])
        for other in block[1:]:
            other[:] = block[0]


def reduce_in_place(arrays: Sequence[Array]) -> None:
    """Put the sum of `arrays` into the first, and into the others what is of no use any more."""
    for block in blocks(arrays):
        _add_along_tree(block, block[0::2])


def reduce(arrays: Sequence[Array], into: Array) -> None:
    """Put the sum of `arrays` into `into`, which may be one of them."""
    scratch: list[Array] = []
    for into_block, *block in blocks([into, *arrays]):
        # The first block is as long as any.
        scratch = scratch or [np.empty_like(into_block) for _ in range(0, len(block), 2)]
        sums = [room[: into_block.size] for room in scratch]
        _add_along_tree(block, sums)
        into_block[:] = sums[0]


def copy(source: Array, arrays: Sequence[Array]) -> None:
    """Put `source` into each of `arrays`, of which one may be itself."""
    for source_block, *block in blocks([source, *arrays]):
        for other in block:
            other[:] = source_block


def blocks(arrays: Sequence[Array]) -> Iterator[list[Array]]:
    """Cut arrays of one length [N] into blocks that fit into the cache together."""
    elements = max(1, _BLOCK_BYTES // (len(arrays) * arrays[0].itemsize))
    for start in range(0, arrays[0].size, elements):
        yield [array[start : start + elements] for array in arrays]


def _add_along_tree(arrays: Sequence[Array], sums: Sequence[Array]) -> None:
    """Put the sum of `arrays` into `sums[0]`: pairs of neighbours are added, then pairs of these sums, and so on.

    `sums` gives room for the sum of each pair, and may hold the first array of each.
    """
    for pair_sum, left, right in zip(sums, arrays[0::2], arrays[1::2], strict=False):
        np.add(left, right, out=pair_sum)
    if len(arrays) % 2:
        sums[-1][:] = arrays[-1]
    distance = 1
    while distance < len(sums):
        for first in range(0, len(sums) - distance, 2 * distance):
            np.add(sums[first], sums[first + distance], out=sums[first])
        distance *= 2
