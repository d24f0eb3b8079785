"""What a rank is doing: its step, and the collectives it has waited in, for the process that says why a job ended.

A rank writes its status to a page of memory. The rank's parent (`rank_parent`) lends it that page, so that it can still
read the status when the rank is gone.
"""

import mmap
import os
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

# A page lent by the parent process, as "<pid of the parent>:<file descriptor>".
PAGE_VARIABLE = "LUCID_RANK_STATUS_PAGE"

# A page has room for so many waits, the newest.
WAITS_KEPT = 200

# A page: rank, ranks, step, phase, warm; the number of waits begun; whether the end is reported; the waits.
_HEADER, _COUNT, _END = struct.Struct("=iiq24s?"), struct.Struct("=q"), struct.Struct("=?")
_COUNT_AT = _HEADER.size
_END_AT = _COUNT_AT + _COUNT.size
_WAITS_AT = _END_AT + _END.size
# A wait: number, step, bytes, bucket, beginning, end, collective. Wait n is in place n % WAITS_KEPT.
_WAIT, _MOMENT = struct.Struct("=qqqidd24s"), struct.Struct("=d")
_ENDED_AT = struct.calcsize("=qqqid")
PAGE_BYTES = _WAITS_AT + WAITS_KEPT * _WAIT.size

Page = bytearray | mmap.mmap


class Wait(NamedTuple):
    """A wait of a rank, in a collective or for its GPU.

    `number` counts the waits of the rank from 1: ranks in the same collective have the same number. `size` is the bytes
    that the collective moves, `bucket` the number of the bucket of gradients or weights, or -1. `began` and `ended` are
    moments of `time.monotonic` on the rank's host; `ended` is 0 while the rank waits.
    """

    number: int = 0
    step: int = -1
    size: int = 0
    bucket: int = -1
    began: float = 0.0
    ended: float = 0.0
    collective: str = ""

    def __str__(self) -> str:
        """Return the wait in words, such as "all_reduce of 25.0 MB (wait 118, bucket 3)"."""
        size = f" of {self.size / 1e6:.1f} MB" if self.size >= 100_000 else ""
        bucket = f", bucket {self.bucket}" if self.bucket >= 0 else ""
        return f"{self.collective}{size} (wait {self.number}{bucket})"


@dataclass(frozen=True)
class RankStatus:
    """What a rank was doing at one moment.

    `rank` is -1 and `ranks` 0 as long as the process has not found the others; `step` is -1 before the first.
    `collective` is empty outside of collectives; `since` is when the present wait began (`time.monotonic`), `size` and
    `bucket` what it moves, `waits` how many waits have begun so far: see `Wait`.
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
    bucket: int = -1
    collective: str = ""
    phase: str = ""
    warm: bool = False
    end_reported: bool = False

    @classmethod
    def read(cls, page: bytes | bytearray | memoryview | mmap.mmap) -> "RankStatus":
        """Return what a rank wrote to `page`, which starts as zeros."""
        rank, ranks, step, phase, warm = _HEADER.unpack_from(page)
        (end_reported,) = _END.unpack_from(page, _END_AT)
        # In a fresh page the numbers are 0, not -1.
        known = ranks > 0
        return cls.with_wait(
            (read_waits(page) or [Wait()])[-1],
            rank=rank if known else -1,
            ranks=ranks,
            step=step if known else -1,
            phase=_text(phase),
            warm=warm,
            end_reported=end_reported,
        )

    @classmethod
    def with_wait(cls, wait: Wait, **fields: Any) -> "RankStatus":
        """Return the status with these other `fields` of a rank whose last wait is `wait`."""
        if wait.collective and not wait.ended:
            fields |= {"since": wait.began, "size": wait.size, "bucket": wait.bucket, "collective": wait.collective}
        return cls(waits=wait.number, **fields)

    def __str__(self) -> str:
        """Return the status in words, such as "in all_reduce of 25.0 MB (wait 118, bucket 3) at step 12"."""
        when = f"at step {self.step}" if self.step >= 0 else "before the first step"
        when += f", {self.phase}" if self.phase else ""
        if not self.collective:
            return when
        wait = Wait(number=self.waits, size=self.size, bucket=self.bucket, collective=self.collective)
        return f"in {wait} {when}"


def write_header(page: Page, rank: int, ranks: int, step: int, phase: str, warm: bool) -> None:
    """Write what a rank is doing to `page`, but for its waits and its end."""
    _HEADER.pack_into(page, 0, rank, ranks, step, phase.encode(), warm)


def write_wait(page: Page, wait: Wait) -> None:
    """Write the newest wait of a rank to `page`. It replaces the oldest."""
    place = _WAITS_AT + wait.number % WAITS_KEPT * _WAIT.size
    _WAIT.pack_into(page, place, *wait[:-1], wait.collective.encode())
    _COUNT.pack_into(page, _COUNT_AT, wait.number)


def write_end_of_wait(page: Page, wait: Wait, ended: float) -> None:
    """Write to `page` that `wait`, one of the newest, has ended."""
    _MOMENT.pack_into(page, _WAITS_AT + wait.number % WAITS_KEPT * _WAIT.size + _ENDED_AT, ended)


def write_end_reported(page: Page) -> None:
    """Write to `page` that the user knows why the process ends."""
    _END.pack_into(page, _END_AT, True)


def read_waits(page: bytes | bytearray | memoryview | mmap.mmap) -> list[Wait]:
    """Return the newest waits of the rank that writes to `page`, at most `WAITS_KEPT`, in their order."""
    (count,) = _COUNT.unpack_from(page, _COUNT_AT)
    waits = []
    for number in range(max(1, count - WAITS_KEPT + 1), count + 1):
        wait = Wait._make(_WAIT.unpack_from(page, _WAITS_AT + number % WAITS_KEPT * _WAIT.size))
        waits.append(wait._replace(collective=_text(cast(bytes, wait.collective))))
    return waits


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


def path_of_lent_page() -> str:
    """Return where other processes of this host find the page that this one's parent has lent, or "" if it has not."""
    descriptor = lent_descriptor()
    return "" if descriptor is None else f"/proc/{os.getppid()}/fd/{descriptor}"


def read_page(path: str) -> bytes | None:
    """Return the page that another process of this host has found at `path`, or None if it is gone."""
    try:
        with open(path, "rb") as page:
            content = page.read(PAGE_BYTES)
    except OSError:
        return None
    return content if len(content) == PAGE_BYTES else None


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode(errors="replace")
