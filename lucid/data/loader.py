"""Computes batches ahead of training, in threads: NumPy releases the interpreter's lock, and no process is forked."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

BatchT = TypeVar("BatchT")


class Loader(Generic[BatchT]):
    """Iterates over `make_batch(step)` for the steps `first` to `stop - 1`, in order.

    `workers` threads compute up to `prefetch` batches ahead (never fewer than one a worker); none starts before the
    first batch is asked for. With 0 workers batches are computed when asked for. What comes out does not depend on
    either. An exception in `make_batch` is raised by the `next` that asks for its step, and ends the iteration.
    """

    def __init__(
        self, make_batch: Callable[[int], BatchT], first: int, stop: int, workers: int = 1, prefetch: int = 2
    ) -> None:
        self._make_batch, self._step, self._stop = make_batch, first, stop
        self._workers, self._ahead = workers, max(prefetch, workers)
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
        """Keep as many batches in the making as may be ahead."""
        while self._step < self._stop and len(self._waiting) < self._ahead:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="lucid-loader")
            self._waiting.append(self._threads.submit(self._make_batch, self._step))
            self._step += 1

    def close(self) -> None:
        """End the threads: what has not been started is given up, what has is waited for. The iteration is over."""
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
