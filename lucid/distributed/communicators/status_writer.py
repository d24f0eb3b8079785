"""What this rank is doing: its step, and the collective it waits in, for the process that says why a job ended.

The watchdog reads the status from another thread. The rank's parent (`lucid/launch/rank_parent.py`) reads it from a
page of memory after a rank was killed, when the rank itself can report nothing.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lucid.launch.rank_status import PAGE_BYTES, RankStatus, lent_page


class StatusWriter:
    """The status of this process. Any thread may read `current`, and report the end; one thread writes the rest."""

    def __init__(self, rank: int, ranks: int) -> None:
        self._writing = threading.Lock()
        self._page = lent_page() or bytearray(PAGE_BYTES)
        self.current = RankStatus(rank, ranks)
        self.current.write(self._page)

    @property
    def step(self) -> int:
        return self.current.step

    @step.setter
    def step(self, step: int) -> None:
        self._update(step=step, warm=self.current.step >= 0)

    @contextmanager
    def waiting(self, collective: str, size: int) -> Iterator[None]:
        """Record that, within the block, this rank waits in a collective that moves `size` bytes."""
        self._update(collective=collective, size=size, since=time.monotonic(), waits=self.current.waits + 1)
        try:
            yield
        finally:
            self._update(collective="", size=0, since=0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record that, within the block, this rank does work that may take long while the others wait for it."""
        before = self.current.phase
        self._update(phase=name)
        try:
            yield
        finally:
            self._update(phase=before)

    def report_end(self) -> None:
        """Record that the user knows why this process ends, or that it ends in order."""
        self._update(end_reported=True)

    def _update(self, **changes: Any) -> None:
        with self._writing:
            self.current = replace(self.current, **changes)
            self.current.write(self._page)
