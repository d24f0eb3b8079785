"""What this rank is doing: its step, and the collectives it waits in, for the process that says why a job ended.

Whatever makes the host wait for other ranks is recorded here: what it is, when it began and when it ended. The watchdog
reads the status from another thread. The rank's parent (`lucid/launch/rank_parent.py`) reads it from a page of memory
after a rank was killed, when the rank itself can report nothing. The log reads how long the rank has waited.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lucid.launch import rank_status
from lucid.launch.rank_status import PAGE_BYTES, RankStatus, Wait, lent_page


class StatusWriter:
    """The status of this process. Any thread may read it, and report the end; one thread writes the rest.

    `seconds_waited` is how long the rank has waited in collectives so far, in host time: for ranks that come later, for
    messages, and for sums that are made in the wait. `on_wait`, if set, hears of each wait when it has ended.
    """

    def __init__(self, rank: int, ranks: int) -> None:
        self._page = lent_page() or bytearray(PAGE_BYTES)
        self._rank, self._ranks = rank, ranks
        self._step, self._phase, self._warm, self._end_reported = -1, "", False, False
        self._wait = Wait()
        self.seconds_waited, self._bucket = 0.0, -1
        self.on_wait: Callable[[Wait], None] | None = None
        self._write_header()

    @property
    def current(self) -> RankStatus:
        return RankStatus.with_wait(
            self._wait,
            rank=self._rank,
            ranks=self._ranks,
            step=self._step,
            phase=self._phase,
            warm=self._warm,
            end_reported=self._end_reported,
        )

    @property
    def waits(self) -> list[Wait]:
        """The newest waits, at most `WAITS_KEPT`, in their order."""
        return rank_status.read_waits(self._page)

    @property
    def step(self) -> int:
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step, self._warm = step, self._step >= 0
        self._write_header()

    @contextmanager
    def waiting(self, collective: str, size: int, for_ranks: bool = True) -> Iterator[None]:
        """Record that, within the block, this rank waits in a collective that moves `size` bytes.

        If it does not wait `for_ranks`, but for its own GPU, the time does not count in `seconds_waited`.
        """
        began = time.monotonic()
        wait = Wait(self._wait.number + 1, self._step, size, self._bucket, began, 0.0, collective)
        self._wait = wait
        rank_status.write_wait(self._page, wait)
        try:
            yield
        finally:
            ended = time.monotonic()
            if for_ranks:
                self.seconds_waited += ended - began
            self._wait = wait._replace(ended=ended)
            rank_status.write_end_of_wait(self._page, wait, ended)
            if self.on_wait is not None:
                self.on_wait(self._wait)

    @contextmanager
    def of_bucket(self, number: int) -> Iterator[None]:
        """Record that waits within the block are for this bucket of gradients or weights."""
        self._bucket = number
        try:
            yield
        finally:
            self._bucket = -1

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record that, within the block, this rank does work that may take long while the others wait for it."""
        before, self._phase = self._phase, name
        self._write_header()
        try:
            yield
        finally:
            self._phase = before
            self._write_header()

    def report_end(self) -> None:
        """Record that the user knows why this process ends, or that it ends in order."""
        self._end_reported = True
        rank_status.write_end_reported(self._page)

    def _write_header(self) -> None:
        rank_status.write_header(self._page, self._rank, self._ranks, self._step, self._phase, self._warm)
