"""Who waits for whom, and when: the columns of the log about waits, as a table and as a map over the steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lucid.analysis.report.facts import RunFacts
from lucid.analysis.report.tables import Table
from lucid.training.log.metrics import Entry

# Columns of the map.
_MOST_COLUMNS = 48
_ROWS = {
    "data_wait": "for data, first rank",
    "communication_wait": "in collectives, mean",
    "communication_wait_max": "in collectives, longest",
}


@dataclass(frozen=True)
class WaitsMap:
    """Waits as fractions of the time, None where the log has none: by label, one for each column.

    The columns have equal numbers of lines of the log; `steps` has the last step of each, after the first step of all.
    """

    steps: tuple[int, ...]
    rows: dict[str, tuple[float | None, ...]]

    @property
    def largest(self) -> float:
        return max(value for row in self.rows.values() for value in row if value is not None)


def waits_map(run: RunFacts) -> WaitsMap | None:
    """Return the map of a run, None if its log has no waits."""
    lines = run.logged.training
    keys = [key for key in _ROWS if any(line.get(key) is not None for line in lines)]
    if not keys:
        return None
    columns = [list(part) for part in np.array_split(np.array(lines, object), min(len(lines), _MOST_COLUMNS))]
    rows = {_ROWS[key]: tuple(_mean(column, key) for column in columns) for key in keys}
    return WaitsMap(tuple(column[-1]["step"] for column in columns), rows)


def _mean(lines: Sequence[Entry], key: str) -> float | None:
    values = [line[key] for line in lines if line.get(key) is not None]
    return min(1.0, max(0.0, float(np.mean(values)))) if values else None


def slowest_table(run: RunFacts) -> Table:
    """Return which ranks the others waited for: in how many lines of the log, and how much time they lost by it."""
    ranks = [line.get("slowest_rank") for line in run.logged.training]
    lines = [line for line, rank in zip(run.logged.training, ranks, strict=True) if rank is not None and rank >= 0]
    lost: dict[int, list[float]] = {}
    for line in lines:
        part = (line.get("communication_wait") or 0.0) * (line.get("slowest_rank_share") or 0.0)
        lost.setdefault(int(line["slowest_rank"]), []).append(part)
    hosts = run.attempts[-1].hosts if run.attempts else ()
    rows = [
        (
            f"{rank:,}",
            hosts[rank] if rank < len(hosts) else "",
            f"{len(parts):,} of {len(lines):,}",
            f"{sum(parts) / len(parts):.1%}",
            f"{sum(parts) / len(lines):.1%}",
        )
        for rank, parts in sorted(lost.items(), key=lambda item: -sum(item[1]))[:8]
    ]
    columns = "rank", "host", "slowest in lines", "time lost there", "of all time"
    return Table(columns, tuple(rows)).without_empty_columns()
