"""Notices threads that wait for cores: several on busy cores can take many times as long as one.

Each part of a kernel or of a product waits for its slowest thread. If other programs or ranks use the cores, some
thread almost always waits for one. Linux counts this time for each thread.
"""

from contextlib import suppress
from pathlib import Path

from lucid.kernels import threads

# By the number of a thread: nanoseconds on a core, and nanoseconds in which it could have run but had no core.
Times = dict[str, tuple[int, int]]

# On idle cores it is below 5%. Two threads on two cores that two other programs use wait for half of the time.
_NOTEWORTHY_SHARE = 0.4
_FEWEST_NANOSECONDS = 10**9


class BusyCores:
    """Watches the threads of this process from now on, and makes at most one remark."""

    def __init__(self) -> None:
        self._before: Times | None = core_times()

    def remark(self) -> str:
        """Return a sentence if the threads have mostly waited for cores since the last call that measured, or ""."""
        if self._before is None:
            return ""
        now = core_times()
        text = judge(threads.count(), self._before, now)
        if text is None:
            return ""  # too short a time to judge
        self._before = None if text else now
        return text


def core_times(tasks: Path = Path("/proc/self/task")) -> Times:
    """Return the times of each thread of this process; nothing where the system does not count them."""
    times = {}
    for task in tasks.glob("*/schedstat"):
        with suppress(OSError, ValueError):  # the thread has ended, or the file has another form
            running, waiting, _ = map(int, task.read_text().split())
            times[task.parent.name] = running, waiting
    return times


def judge(count: int, before: Times, now: Times) -> str | None:
    """Return a remark on what `count` threads a rank did between two times, "" for none, None if that is too little."""
    if count == 1:
        return ""
    both = before.keys() & now.keys()
    running, waiting = (sum(now[each][kind] - before[each][kind] for each in both) for kind in (0, 1))
    if running + waiting < _FEWEST_NANOSECONDS:
        return None
    share = waiting / (running + waiting)
    if share < _NOTEWORTHY_SHARE:
        return ""
    return (
        f"warning: the {count} threads of a rank wait {share:.0%} of their time for cores, which other programs or "
        "ranks use: steps may be faster with fewer (train.threads_per_rank or OMP_NUM_THREADS)"
    )
