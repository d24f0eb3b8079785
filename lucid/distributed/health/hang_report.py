"""The report of a hang: which ranks wait in vain, and for which rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lucid.launch.rank_status import RankStatus


@dataclass(frozen=True)
class Sighting:
    """A rank as its own watchdog saw it: its status, for how many seconds it has not changed, and its main stack."""

    status: RankStatus
    seconds: float
    stack: tuple[str, ...]

    @property
    def waits(self) -> bool:
        """Whether the rank is in a collective."""
        return bool(self.status.collective)


def describe(sightings: Mapping[int, Sighting], hosts: Sequence[str]) -> str:
    """Return the message that ends a run: which ranks are missing, and the status and the stack of every rank.

    `sightings` has the ranks that answer, at least one of which waits. `hosts` has the hosts of all ranks.
    """
    first_wait = next(sightings[rank].status for rank in sorted(sightings) if sightings[rank].waits)
    lines = [f"lucid: ranks wait in vain {first_wait}, all ranks end: {_finding(sightings, hosts)}"]
    for ranks in _groups(sightings):
        label = _names(ranks)
        sighting = sightings[ranks[0]]
        seconds = max(sightings[rank].seconds for rank in ranks)
        where = "" if sighting.waits else "outside of any collective "
        lines.append(f"{label}: {where}{sighting.status}, for {seconds:.1f} s")
        lines += [f"{label}:   {frame}" for frame in sighting.stack]
    return "\n".join(lines)


def _finding(sightings: Mapping[int, Sighting], hosts: Sequence[str]) -> str:
    """Return a sentence that says which ranks are not where the others are."""
    silent = [rank for rank in range(len(hosts)) if rank not in sightings]
    outside = [rank for rank, sighting in sightings.items() if not sighting.waits]
    waiting = {rank: sighting.status for rank, sighting in sightings.items() if sighting.waits}
    if silent:
        does = "does" if len(silent) == 1 else "do"
        return f"{_names(silent, hosts)} {does} not answer (stopped, gone, or cut off from this one)"
    if outside:
        is_not = "is" if len(outside) == 1 else "are"
        return f"{_names(outside, hosts)} {is_not} {sightings[min(outside)].status}, outside of any collective"
    last, first = (choose(status.waits for status in waiting.values()) for choose in (min, max))
    if last != first:
        late = [rank for rank, status in waiting.items() if status.waits == last]
        still = "is" if len(late) == 1 else "are"
        return f"{_names(late, hosts)} {still} behind the others, {waiting[late[0]]}"
    if len({(status.collective, status.size) for status in waiting.values()}) > 1:
        return "they are not in the same collective, so the program has taken different ways on them"
    return "all are in it, so the network does not carry it, or it takes longer than the limit"


def _groups(sightings: Mapping[int, Sighting]) -> list[list[int]]:
    """Return the ranks in groups of equal status and stack, in order of their first ranks."""
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for rank in sorted(sightings):
        groups.setdefault((str(sightings[rank].status), sightings[rank].stack), []).append(rank)
    return list(groups.values())


def _names(ranks: Sequence[int], hosts: Sequence[str] | None = None) -> str:
    """Return "rank 3 (node2)", or "ranks 0-2, 7"."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}" + (f" on {hosts[ranks[0]]}" if hosts else "")
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and runs[-1][-1] == rank - 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return "ranks " + ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
