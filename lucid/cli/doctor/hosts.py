"""Resources of the hosts: cores for the ranks' threads, memory, shared memory, and network interfaces."""

import platform
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lucid.cli.doctor.findings import Finding, Level, ok_if
from lucid.cli.doctor.software import libraries
from lucid.distributed import RankLocation
from lucid.distributed.communicators.mpi_start import lack_of_shared_memory, size_and_free
from lucid.launch.limits import HostMemory
from lucid.models import BERTConfig
from lucid.models.bert.memory import parameter_count
from lucid.training.formatting import count

# Bytes that a rank takes for BERT-base: of memory, as measured, and of shared memory for its gradients.
_MEMORY_OF_BERT_BASE, _GRADIENTS_OF_BERT_BASE = 2.0e9, 4 * parameter_count(BERTConfig())
NETWORKS = Path("/sys/class/net")
INFINIBAND = Path("/sys/class/infiniband")


@dataclass(frozen=True)
class Host:
    """Resources of a host, as its first rank sees them. Sizes are in bytes; `interfaces()` returns the interfaces.

    `shared_memory_lack` is a sentence if MPI cannot start.
    """

    name: str
    ranks: int
    memory: int
    memory_free: int
    shared_memory_free: int
    shared_memory_lack: str | None
    interfaces: dict[str, float]
    libraries: dict[str, str]

    @classmethod
    def here(cls, ranks: int) -> "Host":
        """Return the resources of this host, which has this number of ranks."""
        memory = HostMemory.read()
        lack = lack_of_shared_memory(1)
        return cls(
            name=platform.node(),
            ranks=ranks,
            memory=memory.allowed,
            memory_free=memory.free,
            shared_memory_free=0 if lack else size_and_free()[1],
            shared_memory_lack=lack,
            interfaces=interfaces(),
            libraries=libraries(),
        )


def interfaces() -> dict[str, float]:
    """Return the network interfaces that are up, without the loopback, and their speeds in Gbit/s; 0: unknown."""
    found = {}
    for folder in sorted(NETWORKS.glob("*")):
        if _text(folder / "operstate") in ("up", "unknown") and folder.name != "lo":
            speed = _text(folder / "speed")  # in Mbit/s; -1 if the driver does not know it
            found[folder.name] = int(speed) / 1000 if speed.isdigit() else 0.0
    for port in sorted(INFINIBAND.glob("*/ports/*")):
        rate = _text(port / "rate").split()  # such as "200 Gb/sec (4X HDR)"
        found[f"{port.parents[1].name}:{port.name}"] = float(rate[0]) if rate else 0.0
    return found


def judge_hosts(found: Sequence[Host], locations: Sequence[RankLocation]) -> Iterator[Finding]:
    """Judge all hosts together: each finding is about the worst host."""
    yield Finding(Level.OK, "hosts", f"{count(len(found), 'host')}, {count(len(locations), 'rank')}")
    yield _cores(locations)
    free = {host.memory_free / host.ranks: host for host in found}
    least = free[min(free)]
    yield ok_if(
        min(free) >= _MEMORY_OF_BERT_BASE,
        "memory",
        f"{least.memory_free / 1e9:,.1f} GB free of {least.memory / 1e9:,.1f}{_least_on(least, found)}",
        "BERT-base takes about 2 GB for each rank; start fewer ranks with more threads, or use optimizer.sharded",
    )
    yield _shared_memory(found)
    by_interfaces = defaultdict(list)
    for host in found:
        text = ", ".join(f"{name} {speed:g} Gbit/s" if speed else name for name, speed in host.interfaces.items())
        by_interfaces[text or "none but the loopback"].append(host.name)
    for text, names in by_interfaces.items():
        where = f" on {names[0]}" + f" and {len(names) - 1} more" * (len(names) > 1) if len(found) > 1 else ""
        yield Finding(Level.OK, "network", f"{text}{where}")


def _shared_memory(found: Sequence[Host]) -> Finding:
    for host in found:
        if host.shared_memory_lack:
            return Finding(
                Level.WARNING, "shared memory", f"MPI could not start on {host.name}: {host.shared_memory_lack}"
            )
    least = min(found, key=lambda host: host.shared_memory_free / host.ranks)
    return ok_if(
        least.shared_memory_free / least.ranks >= _GRADIENTS_OF_BERT_BASE or least.ranks == 1,
        "shared memory",
        f"{least.shared_memory_free / 1e9:,.1f} GB free in /dev/shm{_least_on(least, found)}",
        "the gradients of BERT-base take 0.44 GB for each rank, and slower messages carry them if there is no room; "
        f"make it larger (docker and podman: --shm-size={least.ranks}g)",
    )


def _cores(locations: Sequence[RankLocation]) -> Finding:
    """Judge the host with the most threads for each core."""
    by_host: dict[str, list[RankLocation]] = defaultdict(list)
    for location in locations:
        by_host[location.host].append(location)
    crowds = []
    for host, ranks in by_host.items():
        cores = sum({location.cpus: location.cores for location in ranks}.values())
        threads = sum(location.threads for location in ranks)
        crowds.append((threads / cores, threads, cores, host))
    worst, threads, cores, host = max(crowds)
    text = f"{count(threads, 'thread')} on {count(cores, 'core')}"
    advice = "they take turns, and wait for each other; let lucid launch set threads, or start fewer ranks"
    return ok_if(worst <= 1, "cores", f"{text}{f' on {host}' * (len(by_host) > 1)}", advice)


def _least_on(host: Host, found: Sequence[Host]) -> str:
    return f" for {count(host.ranks, 'rank')}" + f" on {host.name}, the least" * (len(found) > 1)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
