"""Work divided among the threads of this rank. Kernels release the GIL, and no result depends on the division.

A rank has as many threads as its BLAS: the launcher gives it its share of the cores by environment variables.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numba

# Below this a thread would take longer to be woken than to do its part.
_ELEMENTS_FOR_A_THREAD = 65_536


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(numba.config.NUMBA_NUM_THREADS - 1, thread_name_prefix="lucid-kernels")


def split(count: int, elements: int, work: Callable[[slice], None]) -> None:
    """Call `work` on slices that make up `range(count)`, at the same time where `elements` are enough for it.

    `elements` is how many numbers `work` goes through in all. Parts are equal up to one; the caller does the first.
    """
    parts = min(numba.config.NUMBA_NUM_THREADS, count, elements // _ELEMENTS_FOR_A_THREAD)
    if parts < 2:
        work(slice(0, count))
        return
    ends = [count * part // parts for part in range(parts + 1)]
    others = [_pool().submit(work, slice(start, stop)) for start, stop in pairwise(ends[1:])]
    work(slice(0, ends[1]))
    for other in others:
        other.result()
