"""Where the ranks are: host, cores, threads and device of each, and a table of them that stays short."""

import json
import platform
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from lucid.backend import CPU, GPUInfo
from lucid.distributed.communicators.agreement import texts_of_all
from lucid.distributed.communicators.communicator import Communicator
from lucid.launch.limits import allowed_cpus, available_cores

_MOST_NAMES = 4


@dataclass(frozen=True)
class Place:
    """Where a rank is. `cpus` are hardware threads by the system's numbers.

    `device` is "cpu" or what the GPU is called ("NVIDIA H200"), `gpu` the GPU's address on the host.
    """

    host: str
    cpus: tuple[int, ...]
    cores: int
    threads: int
    device: str
    gpu: str = ""


class Row(NamedTuple):
    """A line of the table: ranks that are placed in the same way."""

    ranks: str
    hosts: str
    cores: str
    threads: str
    device: str


def places(communicator: Communicator, threads: int, device: str = CPU) -> list[Place]:
    """Return the place of every rank, of which this one computes with `threads` on `device` ("cpu" or "cuda:N").

    All ranks call this.
    """
    gpu = GPUInfo.at(device) if device != CPU else GPUInfo(CPU, address="", nccl="")
    own = Place(platform.node(), tuple(sorted(allowed_cpus())), available_cores(), threads, gpu.name, gpu.address)
    found = []
    for text in texts_of_all(communicator, json.dumps(asdict(own))):
        fields = json.loads(text)
        found.append(Place(**{**fields, "cpus": tuple(fields["cpus"])}))
    return found


def rows(places: Sequence[Place]) -> list[Row]:
    """Return the table of `places`, which are in the order of ranks: a line for all that are placed alike.

    These are the ranks of a host with as many cores, threads and a device of one kind, and those of all hosts where
    such ranks lie on the same cores.
    """
    by_host: dict[str, dict[tuple[int, int, str], list[int]]] = defaultdict(lambda: defaultdict(list))
    for rank, place in enumerate(places):
        by_host[place.host][place.cores, place.threads, place.device].append(rank)
    alike: dict[tuple[int, str, str, str], dict[str, list[int]]] = defaultdict(dict)
    for host, groups in by_host.items():
        for (cores, threads, device), ranks in groups.items():
            these = [places[rank] for rank in ranks]
            alike[len(ranks), _cores(cores, these), str(threads), _device(device, these)][host] = ranks
    return [
        Row(ranges(rank for ranks in hosts.values() for rank in ranks), _names(list(hosts)), *columns)
        for (_, *columns), hosts in alike.items()
    ]


def ranges(numbers: Iterable[int]) -> str:
    """Return `numbers` as in 0-3,8, at most so many parts."""
    runs: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        first = runs.pop()[0] if runs and runs[-1][1] == number - 1 else number
        runs.append((first, number))
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return ",".join(parts if len(parts) <= _MOST_NAMES else [*parts[: _MOST_NAMES - 1], "...", parts[-1]])


def _cores(cores: int, places: Sequence[Place]) -> str:
    cpus = ranges(cpu for place in places for cpu in place.cpus)
    if len(places) == 1:
        return f"{cores} ({cpus})"
    shared = len({place.cpus for place in places}) == 1
    return f"{cores} {'shared' if shared else 'each'} ({cpus})"


def _device(device: str, places: Sequence[Place]) -> str:
    if device == CPU:
        return device
    count = len({place.gpu for place in places})
    return f"{count} x {device}{' shared' * (count < len(places))}"


def _names(hosts: Sequence[str]) -> str:
    if len(hosts) <= _MOST_NAMES:
        return ", ".join(hosts)
    return f"{', '.join(hosts[: _MOST_NAMES - 1])}, ... {hosts[-1]} ({len(hosts)})"
