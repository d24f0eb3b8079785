"""Who waits for whom: the time of each rank since the last line of the log, and how much of it the rank has waited.

A rank that is slower than the others comes last to each collective, where the others wait for it. So it waits least,
and the time that it waits itself is what communication takes. What another waits longer, it waits for the slowest.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from lucid.backend import Array
from lucid.distributed import Communicator


class RankClock:
    """The time of this rank since the last `restart`, and what of it the rank has waited; without pauses."""

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator
        self._began, self._waited_before = self._now()

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), self._communicator.seconds_waited

    def restart(self) -> tuple[float, float]:
        """Return the seconds since the last time, and those of them that this rank has waited in collectives."""
        began, waited_before = self._began, self._waited_before
        self._began, self._waited_before = self._now()
        return self._began - began, self._waited_before - waited_before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block, which evaluates or saves."""
        began, waited_before = self._now()
        yield
        now, waited = self._now()
        self._began += now - began
        self._waited_before += waited - waited_before


class Waits(NamedTuple):
    """The waits of all ranks in a window, as fractions of their time: the mean of all, and the longest.

    `slowest` is the rank that waited least, or None if there is no other.
    `share` is the part of the time in collectives by which the others waited longer than it.
    """

    mean: float
    longest: float
    slowest: int | None
    share: float

    @classmethod
    def of(cls, seconds: Array, waited: Array) -> "Waits":
        """Return the waits of ranks that waited so many of these seconds: float64 [ranks] each."""
        fractions = waited / seconds
        mean, longest, slowest = float(fractions.mean()), float(fractions.max()), int(fractions.argmin())
        lost = mean - float(fractions[slowest])
        return cls(mean, longest, slowest if len(fractions) > 1 else None, lost / mean if mean > 0 else 0.0)

    @property
    def metrics(self) -> dict[str, float]:
        """The names and values for the log."""
        found: dict[str, float] = {"communication_wait": self.mean, "communication_wait_max": self.longest}
        if self.slowest is not None:
            found |= {"slowest_rank": self.slowest, "slowest_rank_share": self.share}
        return found
