"""The clocks of the ranks against the first rank's, so that times of several hosts can be put on one time line.

`time.monotonic` counts from the start of a host. Ranks of one host share it; those of two hosts may be days apart.
"""

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lucid.distributed.communicators.agreement import gather_texts
from lucid.distributed.communicators.communicator import Communicator

_ROUND_TRIPS = 20


class Reading(NamedTuple):
    """At the time `at` of a host's clock, it is ahead of the first rank's by `offset` +- `uncertainty`: all seconds."""

    at: float
    offset: float
    uncertainty: float


class HostClock(NamedTuple):
    """The clock of a host between two readings, in which its offset changes linearly."""

    begin: Reading
    end: Reading

    @property
    def uncertainty(self) -> float:
        """The larger uncertainty of the readings, in seconds."""
        return max(self.begin.uncertainty, self.end.uncertainty)

    def on_first_rank(self, seconds: float) -> float:
        """Return the time on the first rank's clock when this one shows `seconds`."""
        begin, end = self
        share = (seconds - begin.at) / (end.at - begin.at) if end.at > begin.at else 0.0
        return seconds - begin.offset - share * (end.offset - begin.offset)


def clock_of_host() -> str:
    """Return a text that two processes share if, and only if, they read the same clock."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return platform.node()


def first_ranks_of_clocks(communicator: Communicator) -> list[int]:
    """Return for each rank the first rank that reads the same clock. All ranks call this."""
    clocks = gather_texts(communicator, clock_of_host())
    return [clocks.index(clock) for clock in clocks]


def read_clocks(communicator: Communicator, first_ranks: Sequence[int]) -> list[Reading]:
    """Return on the first rank a reading of each rank's clock; `first_ranks_of_clocks` returned `first_ranks`.

    The first rank asks one rank of each host for its time. The answer falls between question and arrival, so that half
    of the shortest round trip bounds the error. All ranks call this; the others' results mean nothing.
    """
    now = time.monotonic()
    readings = {first: Reading(now, 0.0, 0.0) for first in first_ranks}
    for peer in sorted({*first_ranks} - {0}):
        if communicator.rank == 0:
            readings[peer] = min((_ask(communicator, peer) for _ in range(_ROUND_TRIPS)), key=_uncertainty)
        elif communicator.rank == peer:
            for _ in range(_ROUND_TRIPS):
                _answer(communicator)
    return [readings[first] for first in first_ranks]


def _uncertainty(reading: Reading) -> float:
    return reading.uncertainty


def _ask(communicator: Communicator, peer: int) -> Reading:
    question, answer = np.zeros(1), np.zeros(1)
    asked = time.monotonic()
    communicator.send_receive(question, np.zeros(0), peer).wait()
    communicator.send_receive(np.zeros(0), answer, peer).wait()
    arrived = time.monotonic()
    at = float(answer[0])
    return Reading(at, at - (asked + arrived) / 2, (arrived - asked) / 2)


def _answer(communicator: Communicator) -> None:
    communicator.send_receive(np.zeros(0), np.zeros(1), 0).wait()
    communicator.send_receive(np.array([time.monotonic()]), np.zeros(0), 0).wait()
