"""How long a GPU waits for collectives, by events around each wait, which are read after the GPU has passed them.

The host neither waits nor knows when the GPU does. So a wait counts a little later than it happens.
"""

from collections import deque
from typing import Any


class StreamWaits:
    """Makes streams wait, and measures it. `cuda` is the module `cupy.cuda`; one thread uses this."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._pending: deque[tuple[Any, Any]] = deque()
        self._unused: list[tuple[Any, Any]] = []
        self._seconds = 0.0

    def wait_for(self, event: Any) -> None:
        """Make the current stream wait for `event`. While a graph is captured, nothing is measured."""
        stream = self._cuda.get_current_stream()
        if stream.is_capturing():
            stream.wait_event(event)
            return
        before, after = self._events()
        before.record(stream)
        stream.wait_event(event)
        after.record(stream)
        self._pending.append((before, after))

    @property
    def seconds(self) -> float:
        """The time of all waits that the GPU has finished."""
        while self._pending and self._pending[0][1].done:
            before, after = self._pending.popleft()
            self._seconds += self._cuda.get_elapsed_time(before, after) / 1e3
            self._unused.append((before, after))
        return self._seconds

    def _events(self) -> tuple[Any, Any]:
        if not self._unused:
            _ = self.seconds  # frees those of finished waits
        return self._unused.pop() if self._unused else (self._cuda.Event(), self._cuda.Event())
