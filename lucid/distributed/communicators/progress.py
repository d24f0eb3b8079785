"""A thread that carries communication on while the main thread computes: MPI moves messages in its own calls only."""

import threading
import time
from collections.abc import Callable

# A link of 1 Gbit/s brings 60 KB meanwhile; waking up takes some 20 microseconds.
_SECONDS_BETWEEN_CALLS = 5e-4


class ProgressThread:
    """Calls `advance` again and again, with naps in between, for as long as it returns that there is more to do.

    It begins with the first `wake`, and sleeps from when there is nothing to do until the next. An error ends it:
    `advance` has to raise that in the main thread as well, which is bound to wait for what was to be done.
    """

    def __init__(self, advance: Callable[[], bool]) -> None:
        self._advance = advance
        self._thread: threading.Thread | None = None
        self._work, self._ended = threading.Event(), False

    def wake(self) -> None:
        """Say that there is something to do."""
        self._work.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread, and return when it is gone."""
        self._ended = True
        self._work.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while self._work.wait() and not self._ended:
            self._work.clear()  # before looking, so that nothing is missed that comes meanwhile
            try:
                while self._advance() and not self._ended:
                    time.sleep(_SECONDS_BETWEEN_CALLS)
            except BaseException:
                # `advance` keeps what failed, and `wait` raises it where somebody can see it.
                return
