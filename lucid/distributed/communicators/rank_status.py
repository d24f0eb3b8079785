"""Where a rank is: the step it is at, and the collective it waits in, for whoever has to say why a job ended.

The watchdog reads it from another thread. A rank that is killed can tell nothing any more: so a parent process (the
keeper, `launch/keeper.py`) may lend a page of memory to write it to, and reads it when the rank is gone.
"""

import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# A page lent by the parent process, as "<pid of the parent>:<file descriptor>".
PAGE_VARIABLE = "LUCID_WHEREABOUTS_PAGE"

# rank, ranks, step, waits begun, beginning of the wait, bytes, collective, phase, whether warm, whether the end is told
_LAYOUT = struct.Struct("=iiqqdq24s24s??")
PAGE_BYTES = _LAYOUT.size


@dataclass(frozen=True)
class Place:
    """Where a rank was at one moment.

    `rank` is -1 and `ranks` 0 as long as the process has not found the others; `step` is -1 before the first.
    `collective` is empty outside of collectives; `since` is when the present wait began (`time.monotonic`), `size` the
    bytes it moves, `waits` how many waits have begun so far: ranks in the same collective have the same number.
    `phase` says what the rank does that may take long while the others wait ("saving a checkpoint"), if it does.
    `warm` is set from its second step on: in the first one kernels are compiled. `told` is set when the process has
    said why it ends, or ends in order.
    """

    rank: int = -1
    ranks: int = 0
    step: int = -1
    waits: int = 0
    since: float = 0.0
    size: int = 0
    collective: str = ""
    phase: str = ""
    warm: bool = False
    told: bool = False

    @classmethod
    def read(cls, page: bytes | bytearray | memoryview | mmap.mmap) -> "Place":
        """Return what a rank wrote to `page`, which starts as zeros."""
        rank, ranks, step, waits, since, size, collective, phase, warm, told = _LAYOUT.unpack_from(page)
        # In a fresh page the numbers are 0, not -1.
        known = ranks > 0
        return cls(
            rank=rank if known else -1,
            ranks=ranks,
            step=step if known else -1,
            waits=waits,
            since=since,
            size=size,
            collective=_text(collective),
            phase=_text(phase),
            warm=warm,
            told=told,
        )

    def __str__(self) -> str:
        """Return the place in words, such as "in all_reduce of 25.0 MB (wait 118) at step 12, evaluating"."""
        when = f"at step {self.step}" if self.step >= 0 else "before the first step"
        when += f", {self.phase}" if self.phase else ""
        if not self.collective:
            return when
        size = f" of {self.size / 1e6:.1f} MB" if self.size >= 100_000 else ""
        return f"in {self.collective}{size} (wait {self.waits}) {when}"


class Whereabouts:
    """The place of this process, written by the thread that communicates, read by any."""

    def __init__(self, rank: int, ranks: int) -> None:
        self._page = _lent_page() or bytearray(PAGE_BYTES)
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

    def place(self) -> Place:
        """Return where this rank is now."""
        return Place.read(self._page)

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
        _LAYOUT.pack_into(
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


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode(errors="replace")


def _lent_page() -> mmap.mmap | None:
    parent, _, descriptor = os.environ.get(PAGE_VARIABLE, "").partition(":")
    # The variable reaches all descendants, the descriptor only the child itself.
    if not descriptor or parent != str(os.getppid()):
        return None
    return mmap.mmap(int(descriptor), PAGE_BYTES)
