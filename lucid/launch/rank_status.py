"""What a rank is doing: its step, and the collective it waits in, for the process that says why a job ended.

A rank writes its status to a page of memory. The rank's parent (`rank_parent`) lends it that page, so that it can still
read the status when the rank is gone.
"""

import mmap
import os
import struct
from dataclasses import dataclass

# A page lent by the parent process, as "<pid of the parent>:<file descriptor>".
PAGE_VARIABLE = "LUCID_RANK_STATUS_PAGE"

# rank, ranks, step, waits begun, beginning of the wait, bytes, collective, phase, warm, end reported
_LAYOUT = struct.Struct("=iiqqdq24s24s??")
PAGE_BYTES = _LAYOUT.size


@dataclass(frozen=True)
class RankStatus:
    """What a rank was doing at one moment.

    `rank` is -1 and `ranks` 0 as long as the process has not found the others; `step` is -1 before the first.
    `collective` is empty outside of collectives; `since` is when the present wait began (`time.monotonic`), `size` the
    bytes it moves, `waits` how many waits have begun so far: ranks in the same collective have the same number.
    `phase` names what the rank does that may take long while the others wait ("saving a checkpoint"), if anything.
    `warm` is set from its second step on: in the first one kernels are compiled. `end_reported` is set when the
    process has said why it ends, or ends in order.
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
    end_reported: bool = False

    @classmethod
    def read(cls, page: bytes | bytearray | memoryview | mmap.mmap) -> "RankStatus":
        """Return what a rank wrote to `page`, which starts as zeros."""
        rank, ranks, step, waits, since, size, collective, phase, warm, end_reported = _LAYOUT.unpack_from(page)
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
            end_reported=end_reported,
        )

    def write(self, page: bytearray | mmap.mmap) -> None:
        """Write this status to `page`."""
        _LAYOUT.pack_into(
            page,
            0,
            self.rank,
            self.ranks,
            self.step,
            self.waits,
            self.since,
            self.size,
            self.collective.encode(),
            self.phase.encode(),
            self.warm,
            self.end_reported,
        )

    def __str__(self) -> str:
        """Return the status in words, such as "in all_reduce of 25.0 MB (wait 118) at step 12, evaluating"."""
        when = f"at step {self.step}" if self.step >= 0 else "before the first step"
        when += f", {self.phase}" if self.phase else ""
        if not self.collective:
            return when
        size = f" of {self.size / 1e6:.1f} MB" if self.size >= 100_000 else ""
        return f"in {self.collective}{size} (wait {self.waits}) {when}"


def lend_page() -> int | None:
    """Make a page that a child of this process finds by the environment; return its descriptor.

    Returns None where the system has no `memfd_create`.
    """
    if not hasattr(os, "memfd_create"):
        return None
    page = os.memfd_create("rank status", 0)  # 0: open in the child too
    os.ftruncate(page, PAGE_BYTES)
    os.environ[PAGE_VARIABLE] = f"{os.getpid()}:{page}"
    return page


def lent_descriptor() -> int | None:
    """Return the descriptor of the page that the parent of this process has lent, or None if it has lent none."""
    parent, _, descriptor = os.environ.get(PAGE_VARIABLE, "").partition(":")
    # The variable reaches all descendants, the descriptor only the child itself.
    return int(descriptor) if descriptor and parent == str(os.getppid()) else None


def lent_page() -> mmap.mmap | None:
    """Return the page that the parent of this process has lent, or None if it has lent none."""
    descriptor = lent_descriptor()
    return None if descriptor is None else mmap.mmap(descriptor, PAGE_BYTES)


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode(errors="replace")
