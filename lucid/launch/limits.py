"""What of its machine this process may use: cores, their time, and memory."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/")
# Version 1 of control groups has a number for no limit, which depends on the page size.
_NO_LIMIT = 2**62


def available_cores() -> int:
    """Return how many physical cores this process may use: those of its affinity mask, at most its control groups'."""
    cores = _physical_cores(allowed_cpus())
    return max(1, min(cores, int(cpu_limit() or cores)))


def allowed_cpus() -> frozenset[int]:
    """Return the hardware threads of this process's affinity mask."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def cpu_limit(root: Path = _ROOT) -> float | None:
    """Return how many hardware threads' time the control groups of this process let it have, None: all of it."""
    limits = []
    for quota, period in _limits(root, "cpu", ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        if quota.isdigit():  # not "max", or -1
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit(root: Path = _ROOT) -> tuple[int, int] | None:
    """Return how many bytes the control groups of this process allow, and how many of them are free; None: no limit.

    The groups count all processes in them. Of files' pages, those that nobody has used of late count as free, as the
    kernel gives them up for others.
    """
    files = ("memory.max", "memory.current", "memory.stat")
    old_files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    allowed, free = [], []
    for limit, used, *statistics in _limits(root, "memory", files, old_files):
        if limit.isdigit() and int(limit) < _NO_LIMIT:  # not "max"
            counts = dict(zip(statistics[::2], map(int, statistics[1::2]), strict=True))
            unused = counts.get("total_inactive_file", counts.get("inactive_file", 0))
            allowed.append(int(limit))
            free.append(max(0, int(limit) - int(used) + unused))
    return (min(allowed), min(free)) if allowed else None


def _limits(root: Path, controller: str, files: tuple[str, ...], old_files: tuple[str, ...]) -> Iterator[list[str]]:
    """Yield the words in these files of each control group that this process is in; the old ones are of version 1."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for membership in memberships:
        _, controllers, group = membership.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / (controller if controllers else "")
        own = mounted / group.strip("/")
        # A limit of any group above counts. In a container those above its own may be out of sight.
        for folder in (own, *own.parents):
            if folder.is_relative_to(mounted):
                with suppress(OSError):
                    texts = [(folder / name).read_text().strip() for name in (old_files if controllers else files)]
                    yield " ".join(texts).split()


def _physical_cores(cpus: Iterable[int]) -> int:
    """Return on how many cores these hardware threads are."""
    return len({_siblings(cpu) for cpu in cpus})


def _siblings(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)
