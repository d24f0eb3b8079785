"""How much of its machine this process may use: cores, processor time, and memory."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
# Version 1 of control groups writes a number for no limit, which depends on the page size.
_NO_LIMIT = 2**62


def available_cores() -> int:
    """Return how many physical cores this process may use: those of its affinity mask, at most its control groups'."""
    cores = len(physical_cores(allowed_cpus()))
    return max(1, min(cores, int(cpu_limit() or cores)))


def allowed_cpus() -> frozenset[int]:
    """Return the hardware threads in the affinity mask of this process."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_cores(cpus: Iterable[int], root: Path = ROOT) -> tuple[frozenset[int], ...]:
    """Return the cores that the hardware threads `cpus` belong to, one NUMA domain after the other.

    A core is the set of its threads that are in `cpus`.
    """
    system, allowed = root / "sys/devices/system", frozenset(cpus)
    domains: dict[int, int] = {}
    for path in system.glob("node/node*/cpulist"):
        domains |= dict.fromkeys(numbers_in(path), int(path.parent.name.removeprefix("node")))
    siblings = {cpu: numbers_in(system / f"cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in allowed}
    cores = {others & allowed or frozenset({cpu}) for cpu, others in siblings.items()}
    return tuple(sorted(cores, key=lambda core: (domains.get(min(core), 0), min(core))))


def numbers_in(path: Path) -> frozenset[int]:
    """Return the numbers that a file of the kernel lists, such as 0-3,8; none if there is no such file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return frozenset()
    ranges = [part.partition("-") for part in text.split(",") if part]
    return frozenset(number for low, _, high in ranges for number in range(int(low), int(high or low) + 1))


def cpu_limit(root: Path = ROOT) -> float | None:
    """Return how many hardware threads' time the control groups allow this process; None means all of it."""
    limits = []
    for quota, period in _limits(root, "cpu", ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        if quota.isdigit():  # not "max", or -1
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit(root: Path = ROOT) -> tuple[int, int] | None:
    """Return how many bytes the control groups allow this process, and how many of them are free; None: no limit.

    The groups count the memory of all their processes. Pages of files that nobody has used lately count as free,
    because the kernel gives them up for others.
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


@dataclass(frozen=True)
class HostMemory:
    """Bytes of memory that this process may use, of which some are free, and bytes of swap space in addition."""

    allowed: int
    free: int
    swap: int

    @classmethod
    def read(cls, root: Path = ROOT) -> "HostMemory":
        """Return the memory of this host, within the control groups of this process."""
        known = {}
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _, size = line.partition(":")
            known[name] = int(size.split()[0]) * 1024
        available = known.get("MemAvailable", known["MemTotal"])
        allowed, free = memory_limit(root) or (known["MemTotal"], available)
        return cls(min(known["MemTotal"], allowed), min(available, free), known.get("SwapTotal", 0))

    @property
    def most(self) -> int:
        """The most bytes that could ever be had here."""
        return self.allowed + self.swap


def _limits(root: Path, controller: str, files: tuple[str, ...], old_files: tuple[str, ...]) -> Iterator[list[str]]:
    """Yield the words in `files` of each control group of this process; version 1 has them in `old_files`."""
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
        # The limits of all parent groups apply. A container may not see those above its own.
        for folder in (own, *own.parents):
            if folder.is_relative_to(mounted):
                with suppress(OSError):
                    texts = [(folder / name).read_text().strip() for name in (old_files if controllers else files)]
                    yield " ".join(texts).split()
