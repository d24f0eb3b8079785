"""Where the ranks run: host, cores, threads and device of each, and a table of them that stays short."""

import json
import platform
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from lucid.backend import CPU, GPUInfo
from lucid.distributed.communicators.agreement import gather_texts
from lucid.distributed.communicators.communicator import Communicator
from lucid.launch.limits import allowed_cpus, available_cores
from lucid.output import table_width

_MOST_NAMES = 4


@dataclass(frozen=True)
class RankLocation:
    """Where a rank runs. `cpus` are hardware threads, by the system's numbers.

    `device` is "cpu" or the name of the GPU ("NVIDIA H200"); `gpu` is the GPU's address on the host.
    """

    host: str
    cpus: tuple[int, ...]
    cores: int
    threads: int
    device: str
    gpu: str = ""


class LocationRow(NamedTuple):
    """A row of the table, for ranks whose locations look the same."""

    ranks: str
    hosts: str
    cores: str
    threads: str
    device: str


def locate_ranks(communicator: Communicator, threads: int, device: str = CPU) -> list[RankLocation]:
    """Return the location of every rank. This one computes with `threads` on `device` ("cpu" or "cuda:N").

    All ranks call this.
    """
    gpu = GPUInfo.at(device) if device != CPU else GPUInfo(CPU, address="", nccl="")
    own = RankLocation(
        platform.node(), tuple(sorted(allowed_cpus())), available_cores(), threads, gpu.name, gpu.address
    )
    found = []
    for text in gather_texts(communicator, json.dumps(asdict(own))):
        fields = json.loads(text)
        found.append(RankLocation(**{**fields, "cpus": tuple(fields["cpus"])}))
    return found


def location_rows(locations: Sequence[RankLocation]) -> list[LocationRow]:
    """Return the table of `locations`, which are in the order of ranks.

    Ranks of a host share a row if they have equally many cores and threads, and the same kind of device. Hosts share a
    row if these ranks run on the same cores.
    """
    by_host: dict[str, dict[tuple[int, int, str], list[int]]] = defaultdict(lambda: defaultdict(list))
    for rank, location in enumerate(locations):
        by_host[location.host][location.cores, location.threads, location.device].append(rank)
    same_row: dict[tuple[int, str, str, str], dict[str, list[int]]] = defaultdict(dict)
    for host, groups in by_host.items():
        for (cores, threads, device), ranks in groups.items():
            these = [locations[rank] for rank in ranks]
            same_row[len(ranks), _cores(cores, these), str(threads), _device(device, these)][host] = ranks
    return [
        LocationRow(ranges(rank for ranks in hosts.values() for rank in ranks), _names(list(hosts)), *columns)
        for (_, *columns), hosts in same_row.items()
    ]


def print_locations(locations: Sequence[RankLocation]) -> None:
    """Print the table of `locations`."""
    table = Table("ranks", "hosts", "cores", "threads", "device")
    for row in location_rows(locations):
        table.add_row(*row)
    Console(width=table_width(), soft_wrap=True, highlight=False, markup=False).print(table)


def ranges(numbers: Iterable[int]) -> str:
    """Return `numbers` as ranges ("0-3,8"); beyond four ranges the middle is left out."""
    runs: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        first = runs.pop()[0] if runs and runs[-1][1] == number - 1 else number
        runs.append((first, number))
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return ",".join(parts if len(parts) <= _MOST_NAMES else [*parts[: _MOST_NAMES - 1], "...", parts[-1]])


def _cores(cores: int, locations: Sequence[RankLocation]) -> str:
    cpus = ranges(cpu for location in locations for cpu in location.cpus)
    if len(locations) == 1:
        return f"{cores} ({cpus})"
    shared = len({location.cpus for location in locations}) == 1
    return f"{cores} {'shared' if shared else 'each'} ({cpus})"


def _device(device: str, locations: Sequence[RankLocation]) -> str:
    if device == CPU:
        return device
    count = len({location.gpu for location in locations})
    return f"{count} x {device}{' shared' * (count < len(locations))}"


def _names(hosts: Sequence[str]) -> str:
    if len(hosts) <= _MOST_NAMES:
        return ", ".join(hosts)
    return f"{', '.join(hosts[: _MOST_NAMES - 1])}, ... {hosts[-1]} ({len(hosts)})"
