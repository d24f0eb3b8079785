"""Computes batches ahead of training, in threads.

Threads suffice because NumPy releases the interpreter's lock, so no process is forked.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

BatchT = TypeVar("BatchT")


def batches_ahead(workers: int, prefetch: int) -> int:
    """Return how many batches a `Loader` computes ahead of the one that was requested last."""
    return max(prefetch, workers) if workers else 0


class Loader(Generic[BatchT]):
    """Iterates over `make_batch(step)` for the steps `first` to `stop - 1`, in order.

    `workers` threads compute up to `prefetch` batches ahead, and at least one each. They start with the first request.
    With 0 workers each batch is computed on request. The batches depend on neither number. The request for a step
    raises the exception that `make_batch` raised for it, and ends the iteration.
    """

    def __init__(
        self, make_batch: Callable[[int], BatchT], first: int, stop: int, workers: int = 1, prefetch: int = 2
    ) -> None:
        self._make_batch, self._step, self._stop = make_batch, first, stop
        self._workers, self._ahead = workers, batches_ahead(workers, prefetch)
        self._threads: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[BatchT]] = deque()

    def __iter__(self) -> "Loader[BatchT]":
        return self

    def __next__(self) -> BatchT:
        try:
            return self._next()
        except BaseException:
            self.close()
            raise

    def _next(self) -> BatchT:
        if self._workers == 0 and self._step < self._stop:
            self._step += 1
            return self._make_batch(self._step - 1)
        self._submit()
        if not self._waiting:
            raise StopIteration
        batch = self._waiting.popleft().result()
        self._submit()
        return batch

    def _submit(self) -> None:
        """Start computing batches until as many as allowed are ahead."""
        while self._step < self._stop and len(self._waiting) < self._ahead:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="lucid-loader")
            self._waiting.append(self._threads.submit(self._make_batch, self._step))
            self._step += 1

    def close(self) -> None:
        """End the iteration and its threads: drop the batches that no thread has started, and wait for the others."""
        self._step = self._stop
        self._waiting.clear()
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._threads = None

    def __enter__(self) -> "Loader[BatchT]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
