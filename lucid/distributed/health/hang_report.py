"""The report of a hang: which ranks wait in vain, for which rank, and where each rank has waited before."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lucid.launch.rank_status import RankStatus, Wait

# So many of the waits before the present one are part of the message.
_WAITS_SHOWN = 3


_TITLES = "wait", "step", "bucket", "bytes", "seconds ago", "seconds", "collective"
_ROW = "{:>12}  {:>9}  {:>6}  {:>13}  {:>14}  {:>12}  {}"


@dataclass(frozen=True)
class Sighting:
    """A rank as its own watchdog saw it: its status, for how many seconds it has not changed, and its main stack.

    `seconds` is NaN if it is not known: of a rank whose page alone is seen, before its first wait. `waits_so_far` are
    the rank's newest waits, the present one included.
    """

    status: RankStatus
    seconds: float
    stack: tuple[str, ...]
    waits_so_far: tuple[Wait, ...] = ()

    @property
    def waits(self) -> bool:
        """Whether the rank is in a collective."""
        return bool(self.status.collective)

    @property
    def ended_waits(self) -> tuple[Wait, ...]:
        """The newest waits that have ended, in their order."""
        return tuple(wait for wait in self.waits_so_far if wait.ended)


def describe(
    sightings: Mapping[int, Sighting], hosts: Sequence[str], unanswered: Mapping[int, Sighting] | None = None
) -> str:
    """Return the message that ends a run: which ranks are missing, and the status and the stack of every rank.

    `sightings` has the ranks that answer, at least one of which waits. `hosts` has the hosts of all ranks. `unanswered`
    has what is known, without a stack, of ranks that do not answer.
    """
    first_wait = next(sightings[rank].status for rank in sorted(sightings) if sightings[rank].waits)
    lines = [f"lucid: ranks wait in vain {first_wait}, all ranks end: {_finding(sightings, hosts)}"]
    seen = {**sightings, **(unanswered or {})}
    for ranks in _groups(seen):
        label = _names(ranks)
        sighting = seen[ranks[0]]
        seconds = max(seen[rank].seconds for rank in ranks)
        where = "" if sighting.waits else "outside of any collective "
        lines.append(f"{label}: {where}{sighting.status}" + ("" if math.isnan(seconds) else f", for {seconds:.1f} s"))
        if before := sighting.ended_waits[-_WAITS_SHOWN:]:
            lines.append(f"{label}: before that in {', '.join(map(str, before))}")
        lines += [f"{label}:   {frame}" for frame in sighting.stack]
    return "\n".join(lines)


def history(sightings: Mapping[int, Sighting], hosts: Sequence[str]) -> str:
    """Return a table of the newest waits of each rank: how long ago they began, and how long they took.

    Both are in seconds. The former is counted back from the moment at which the rank was seen, by its own clock.
    """
    lines = []
    for rank in sorted(sightings):
        sighting = sightings[rank]
        lines += [f"rank {rank} on {hosts[rank]}: {sighting.status}", _ROW.format(*_TITLES)]
        waits = sighting.waits_so_far
        seen = max((wait.ended or wait.began for wait in waits), default=0.0) + sighting.seconds
        for wait in waits:
            bucket = wait.bucket if wait.bucket >= 0 else ""
            took = f"{wait.ended - wait.began:.6f}" if wait.ended else "is in it"
            began = f"{seen - wait.began:.6f}"
            lines.append(_ROW.format(wait.number, wait.step, bucket, wait.size, began, took, wait.collective).rstrip())
        lines.append("")
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
        example = sightings[min(outside)]
        after = f", after {example.ended_waits[-1]}" if example.ended_waits else ""
        return f"{_names(outside, hosts)} {is_not} {example.status}, outside of any collective{after}"
    last, first = (choose(status.waits for status in waiting.values()) for choose in (min, max))
    if last != first:
        late = [rank for rank, status in waiting.items() if status.waits == last]
        still = "is" if len(late) == 1 else "are"
        others = {str(status) for status in waiting.values() if status.waits > last}
        they = f"; the others are {others.pop()}" if len(others) == 1 else ""
        return f"{_names(late, hosts)} {still} behind the others, {waiting[late[0]]}{they}"
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
