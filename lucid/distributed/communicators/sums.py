"""Sums of arrays that this process can read, in blocks that fit into the cache, in the exact reduction's order.

Neighbours are added first: ((a0 + a1) + (a2 + a3)) + .... So every process that adds them gets the same bits.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from lucid.backend import Array

# The size of a block of all arrays together. It stays in a core's cache from the addition to the last copy.
_BLOCK_BYTES = 2**19


def all_reduce(arrays: Sequence[Array]) -> None:
    """Replace each of `arrays` by their sum."""
    for block in blocks(arrays):
        _add_along_tree(block, block[0::2])
        for other in block[1:]:
            other[:] = block[0]


def reduce_in_place(arrays: Sequence[Array]) -> None:
    """Replace the first of `arrays` by their sum. The content of the others is undefined afterwards."""
    for block in blocks(arrays):
        _add_along_tree(block, block[0::2])


def reduce(arrays: Sequence[Array], into: Array) -> None:
    """Write the sum of `arrays` to `into`, which may be one of them."""
    scratch: list[Array] = []
    for into_block, *block in blocks([into, *arrays]):
        if len(block) == 2:
            np.add(block[0], block[1], out=into_block)
            continue
        # No later block is longer than the first.
        scratch = scratch or [np.empty_like(into_block) for _ in range(0, len(block), 2)]
        sums = [array[: into_block.size] for array in scratch]
        _add_along_tree(block, sums)
        into_block[:] = sums[0]


def copy(source: Array, arrays: Sequence[Array]) -> None:
    """Copy `source` to each of `arrays`, one of which may be `source` itself."""
    for source_block, *block in blocks([source, *arrays]):
        for other in block:
            other[:] = source_block


def blocks(arrays: Sequence[Array]) -> Iterator[list[Array]]:
    """Cut arrays of equal length [N] into blocks that fit into the cache together."""
    elements = max(1, _BLOCK_BYTES // (len(arrays) * arrays[0].itemsize))
    for start in range(0, arrays[0].size, elements):
        yield [array[start : start + elements] for array in arrays]


def _add_along_tree(arrays: Sequence[Array], sums: Sequence[Array]) -> None:
    """Write the sum of `arrays` to `sums[0]`: add pairs of neighbours, then pairs of these sums, and so on.

    `sums` has an array for the sum of each pair, which may be the pair's first array.
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
