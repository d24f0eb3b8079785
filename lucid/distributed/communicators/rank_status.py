"""What this rank is doing: its step, and the collective it waits in, for the process that says why a job ended.

The watchdog reads it from another thread. The rank's parent (`lucid/launch/rank_parent.py`) reads it when a rank was
killed, and can tell nothing any more.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from lucid.launch.rank_status import LAYOUT, PAGE_BYTES, RankStatus, lent_page


class Whereabouts:
    """The place of this process, written by the thread that communicates, read by any."""

    def __init__(self, rank: int, ranks: int) -> None:
        self._page = lent_page() or bytearray(PAGE_BYTES)
        self._rank, self._ranks = rank, ranks
        self._step, self._waits, self._phase = -1, 0, ""
        self._warm, self._told = False, False
        self._write()

    @property
    def step(self) -> int:
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._warm = self._step >= 0
        self._step = step
        self._write()

    def place(self) -> RankStatus:
        """Return where this rank is now."""
        return RankStatus.read(self._page)

    @contextmanager
    def waiting(self, collective: str, size: int) -> Iterator[None]:
        """Note that this rank waits, within the block, in a collective that moves `size` bytes."""
        self._waits += 1
        self._write(collective, size, time.monotonic())
        try:
            yield
        finally:
            self._write()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note that this rank does, within the block, what may take long while the others wait for it."""
        before, self._phase = self._phase, name
        self._write()
        try:
            yield
        finally:
            self._phase = before
            self._write()

    def end_told(self) -> None:
        """Note that the user knows why this process ends, or that it ends in order."""
        self._told = True
        self._write()

    def _write(self, collective: str = "", size: int = 0, since: float = 0.0) -> None:
        LAYOUT.pack_into(
            self._page,
            0,
            self._rank,
            self._ranks,
            self._step,
            self._waits,
            since,
            size,
            collective.encode(),
            self._phase.encode(),
            self._warm,
            self._told,
        )
