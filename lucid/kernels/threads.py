"""The division of work among the threads of this rank. Kernels release the GIL; no result depends on the division."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import pairwise

from threadpoolctl import ThreadpoolController

# With fewer elements, waking a thread takes longer than its work.
_ELEMENTS_A_THREAD = 65_536
_limit: int | None = None


def limit(count: int) -> None:
    """Let kernels use `count` threads from now on."""
    global _limit
    _limit = count


@contextmanager
def limit_kept() -> Iterator[None]:
    """Restore the limit after the block."""
    global _limit
    before = _limit
    try:
        yield
    finally:
        _limit = before


def count() -> int:
    """Return the number of threads of kernels: the limit, or else the number that a BLAS takes from the environment."""
    return _default_count() if _limit is None else _limit


@functools.cache
def _default_count() -> int:
    announced = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(announced) if announced.isdigit() and int(announced) else len(os.sched_getaffinity(0))


def split(total: int, elements: int, work: Callable[[slice], None]) -> None:
    """Call `work` on slices that cover `range(total)`, in parallel if there are enough `elements`.

    `elements` is the total number of elements that `work` processes. The slices' lengths differ by at most one; the
    calling thread works on the first. If `work` raises an error, it is raised once no thread works on a slice.
    """
    parts = min(count(), total, elements // _ELEMENTS_A_THREAD)
    if parts < 2:
        work(slice(0, total))
        return
    ends = [total * part // parts for part in range(parts + 1)]
    others: list[Future[None]] = []
    try:
        for start, stop in pairwise(ends[1:]):
            others.append(_pool(count() - 1).submit(work, slice(start, stop)))
        work(slice(0, ends[1]))
    finally:
        _wait_until_done(others)
    for other in others:
        other.result()


def _wait_until_done(parts: Sequence[Future[None]]) -> None:
    """Wait for `parts`, also after an error: they write into arrays that the caller may then free or reuse.

    An interrupt from the keyboard is raised afterwards.
    """
    try:
        wait(parts)
    except BaseException:
        _wait_until_done(parts)
        raise


def split_products(total: int, elements: int, work: Callable[[slice], None]) -> None:
    """Like `split`, for work that multiplies small matrices: meanwhile the BLAS uses one thread per product."""
    if count() == 1:
        work(slice(0, total))
        return
    with _libraries().limit(limits=1, user_api="blas"):
        split(total, elements, work)


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kernels")
