"""Finds a rank that miscomputes: ranks compute each other's gradients, which must have the same bits.

No comparison of replicas finds such a rank. All ranks apply the same sums, so their weights stay equal, even if one
rank's part of the sums is wrong. Processors that now and then compute wrongly, without any sign, are rare but real
(Hochschild et al., "Cores that don't count", 2021; Dixit et al., "Silent data corruptions at scale", 2021). A core may
be wrong every time for the same numbers. So another core has to compute them, best on another host.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lucid.backend import Array
from lucid.distributed.communicators.agreement import gather_rows
from lucid.distributed.communicators.communicator import Communicator
from lucid.errors import some


@dataclass(frozen=True)
class Fault:
    """Ranks whose gradients are wrong, or may be, the sentence that says why, and the parameters that differ."""

    ranks: list[int]
    sentence: str
    names: list[str]

    def __str__(self) -> str:
        return f"{self.sentence}, in {some(self.names)}"


def audited_ranks(hosts: Sequence[str], number: int) -> list[int]:
    """Return for each rank which other one it audits, in audit `number` of a run whose ranks are on these hosts.

    Each rank is audited once. The auditor is on another host if no host has more than half of the ranks, and else in
    some of the audits. The pairs change from audit to audit.
    """
    size, most = len(hosts), max(Counter(hosts).values())
    # In this order, so many places further there is another host.
    least = most if 2 * most <= size else 1
    shift = least + number % (size - 2 * least + 1)
    order = sorted(range(size), key=lambda rank: (hosts.index(hosts[rank]), rank))
    audited = [0] * size
    for place, rank in enumerate(order):
        audited[rank] = order[(place + shift) % size]
    return audited


def find_fault(
    communicator: Communicator,
    hosts: Sequence[str],
    number: int,
    names: Sequence[str],
    checksums_of: Callable[[int], Array],
) -> Fault | None:
    """Compare gradients between ranks in audit `number`; return None if all are equal. All ranks call this.

    `checksums_of(rank)` computes the gradients that this audit has of one rank, and returns their checksums, int64
    [names]. Each rank computes its own and those of `audited_ranks`. If two results differ, both ranks compute them
    again, and a third rank too, if there is one, to find out which is wrong.
    """
    rank, audited = communicator.rank, audited_ranks(hosts, number)
    own, audits = gather_rows(communicator, np.array([checksums_of(rank), checksums_of(audited[rank])])).swapaxes(0, 1)
    differs = [auditor for auditor in range(communicator.size) if (audits[auditor] != own[audited[auditor]]).any()]
    if not differs:
        return None
    auditor = differs[0]
    owner = audited[auditor]
    third = _third(hosts, owner, auditor)
    witnesses = [owner, auditor] if third is None else [owner, auditor, third]
    again = gather_rows(communicator, checksums_of(owner) if rank in witnesses else np.zeros(len(names), np.int64))
    wrong = owner, auditor
    sentence = _sentence(hosts, wrong, third, (own[owner], audits[auditor]), again)
    different = (own[owner] != audits[auditor]).tolist()
    return Fault(*sentence, [name for name, differ in zip(names, different, strict=True) if differ])


def _third(hosts: Sequence[str], *pair: int) -> int | None:
    """Return a rank besides the pair, on a host of its own if possible; None if there is none."""
    others = [rank for rank in range(len(hosts)) if rank not in pair]
    taken = {hosts[rank] for rank in pair}
    return min(others, key=lambda rank: (hosts[rank] in taken, rank), default=None)


def _sentence(
    hosts: Sequence[str], pair: tuple[int, int], third: int | None, before: tuple[Array, Array], again: Array
) -> tuple[list[int], str]:
    """Return which ranks are wrong, and why, from what a pair has computed `before` and all witnesses have `again`."""

    def named(ranks: Iterable[int]) -> str:
        return " and ".join(f"rank {rank} on {hosts[rank]}" for rank in ranks)

    unsteady = [rank for rank, first in zip(pair, before, strict=True) if (again[rank] != first).any()]
    if unsteady:
        times = "computed different gradients from the same numbers when it repeated them"
        return unsteady, f"{named(unsteady)} {times}"
    if third is None:
        undecided = "compute different gradients from the same numbers, and no third rank can decide"
        return [*pair], f"{named(pair)} {undecided}"
    agree = [rank for rank in pair if (again[rank] == again[third]).all()]
    wrong = [rank for rank in pair if rank not in agree]
    if not agree:
        return [*pair, third], f"{named([*pair, third])} all compute different gradients from the same numbers"
    return wrong, f"{named(wrong)} computes different gradients from {named([*agree, third])}, given the same numbers"
