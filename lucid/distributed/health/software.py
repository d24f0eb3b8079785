"""Refuses ranks that run other versions than the first rank.

Replicas would silently drift apart if two versions differed in one bit of a sum. Ranks that communicate differently
would hang.
"""

import functools
import hashlib
import json
import platform
from functools import partial
from pathlib import Path

import numpy as np

from lucid.distributed.communicators.agreement import all_or_none, run_on_first_rank
from lucid.distributed.communicators.communicator import Communicator
from lucid.errors import LaunchError
from lucid.version import __version__

_SOURCES = "sources of lucid"


def check_same_software(communicator: Communicator, mpi_library: str) -> None:
    """Raise an agreed error if a rank runs other versions than the first one. All ranks call this together."""
    # The ranks of a host read the same files.
    own = {"host": platform.node(), **versions(communicator.local_rank == 0), "MPI": mpi_library}
    first = json.loads(run_on_first_rank(communicator, lambda: json.dumps(own)))
    all_or_none(communicator, partial(_compare, communicator.rank, own, first))


def versions(with_sources: bool = True) -> dict[str, str]:
    """Return the versions that this process runs, by name, and a digest of the sources of lucid."""
    found = {"lucid": __version__, "Python": platform.python_version(), "NumPy": np.__version__}
    return {**found, _SOURCES: _digest(Path(__file__).parents[2])} if with_sources else found


def _compare(rank: int, own: dict[str, str], first: dict[str, str]) -> None:
    different = [name for name in own if name != "host" and own[name] != first[name]]
    if different:
        here, there = (", ".join(f"{name} {versions[name]}" for name in different) for versions in (own, first))
        raise LaunchError(
            f"rank {rank} on {own['host']} runs {here}, but rank 0 on {first['host']} runs {there}: install the same "
            "on all hosts, or start all from one file system"
        )


@functools.cache
def _digest(folder: Path) -> str:
    """Return the first 8 hexadecimal digits of a digest of all Python files below `folder`."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:8]
