"""Finds replicas that drift apart: every rank must hold the same weights, bit for bit.

They stay equal while all ranks apply the same sums to the same weights. A flipped bit in one rank's memory, or a
library that computes differently on one host, breaks this without any sign: the loss still falls, but more slowly.
"""

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lucid.backend import Array, to_host
from lucid.distributed.communicators.agreement import gather_rows
from lucid.distributed.communicators.communicator import Communicator
from lucid.errors import some


@dataclass(frozen=True)
class Drift:
    """The ranks whose weights differ from those of the majority, and the names of the parameters that differ.

    Without a `majority`, `ranks` are all ranks, which do not all hold the same weights.
    """

    ranks: list[int]
    majority: bool
    names: list[str]

    def __str__(self) -> str:
        one = len(self.ranks) == 1
        ranks = f"rank {self.ranks[0]}" if one else f"ranks {', '.join(map(str, self.ranks))}"
        what = (
            f"{'holds' if one else 'hold'} other weights than the rest" if self.majority else "hold different weights"
        )
        return f"{ranks} {what}, in {some(self.names)}"


def checksums(arrays: Mapping[str, Array]) -> Array:
    """Return the CRC-32 of each array: int64 [arrays]."""
    return np.array([zlib.crc32(np.ascontiguousarray(to_host(array)).data) for array in arrays.values()], np.int64)


def find_drift(parameters: Mapping[str, Array], communicator: Communicator) -> Drift | None:
    """Compare the checksums of `parameters` over all ranks; return None if all are equal. All ranks call this."""
    names = list(parameters)
    found = gather_rows(communicator, checksums(parameters))
    most_common, count = Counter(map(bytes, found)).most_common(1)[0]
    if count == communicator.size:
        return None
    majority = 2 * count > communicator.size
    ranks = [rank for rank, row in enumerate(found) if not majority or bytes(row) != most_common]
    differs = (found != found[0]).any(axis=0)
    return Drift(ranks, majority, [name for name, different in zip(names, differs, strict=True) if different])
