"""`lucid doctor`: checks this machine, or the machines of all ranks, before a long run."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from lucid.cli.doctor.findings import Finding, Level, print_finding
from lucid.cli.doctor.hosts import Host, judge_hosts
from lucid.cli.doctor.network import measure_network
from lucid.cli.doctor.software import judge_software
from lucid.cli.doctor.storage import measure_storage
from lucid.distributed import RankLocation, gather_texts, locate_ranks, print_locations, session, watched
from lucid.distributed.communicators.mpi import MPICommunicator
from lucid.distributed.connection import ProcessGroup
from lucid.errors import ExitCode
from lucid.kernels import threads

_SECONDS_WITHOUT_ANSWER = 60.0


def doctor(
    folder: Annotated[Path, typer.Option(help="Folder in which checkpoints will be written.")] = Path("runs"),
) -> int:
    """Check this machine before a long run, or the machines of all ranks, and say what to fix.

    Each line is ok, a warning or an error; the last two say what to do. Exit code 1: there is an error. 2: the ranks
    cannot work together at all. 0: neither. This takes seconds, and writes and removes 256 MB in the folder.

    Examples:

        lucid doctor

        lucid launch -n 4 --hostfile hosts --doctor --folder /scratch/runs
    """
    with session() as group, watched(group, _SECONDS_WITHOUT_ANSWER):
        ranks = locate_ranks(group, threads.count())
        found = _hosts(group, ranks)
        errors = 0
        for finding in chain(_alone(group, found, ranks, folder), _together(group, found)):
            if group.rank == 0:
                print_finding(finding)
                errors += finding.level == Level.ERROR
        if group.rank == 0:
            print_locations(ranks)
        failed = group.all_reduce_scalar(errors) > 0
    return ExitCode.FAILED if failed else ExitCode.FINISHED


def _alone(group: ProcessGroup, found: list[Host], ranks: list[RankLocation], folder: Path) -> Iterator[Finding]:
    """Yield the findings of the first rank."""
    if group.rank == 0:
        yield from judge_software(group, {host.name: host.libraries for host in found})
        yield from judge_hosts(found, ranks)
        yield measure_storage(folder)
    group.barrier()


def _together(group: ProcessGroup, found: list[Host]) -> Iterator[Finding]:
    """Yield the findings of all ranks together."""
    if isinstance(group, MPICommunicator) and group.size > 1:
        # Half of the free memory, because other processes need some.
        memory = min(min(host.memory_free, host.shared_memory_free) / host.ranks for host in found)
        yield from measure_network(group, memory / 2)
    else:
        text = "one process, nothing to measure; start as many as the run will have: lucid launch -n N --doctor"
        yield Finding(Level.OK, "all-reduce", text)


def _hosts(group: ProcessGroup, ranks: list[RankLocation]) -> list[Host]:
    """Return all hosts, as their first ranks see them."""
    count = sum(rank.host == ranks[group.rank].host for rank in ranks)
    own = json.dumps(asdict(Host.here(count))) if group.local_rank == 0 else ""
    return [Host(**json.loads(text)) for text in gather_texts(group, own) if text]
