"""What a part of the check finds, line by line as it comes, so that a part that is stopped leaves what it has found."""

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Results:
    """A file with a line of JSON for each thing that was found."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, **found: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")

    def read(self) -> list[Line]:
        """Return all lines; one that was cut short is none."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1] if line]


def markdown(lines: list[Line]) -> str:
    """Return lines as tables: those with the same fields are rows of one."""
    tables: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        tables.setdefault(tuple(line), []).append(line)
    return "\n".join("\n".join(_table(names, rows)) + "\n" for names, rows in tables.items())


def _table(names: tuple[str, ...], rows: list[Line]) -> list[str]:
    cells = [[name.replace("_", " ") for name in names], ["---"] * len(names)]
    cells += [[_text(row[name]) for name in names] for row in rows]
    return [f"| {' | '.join(line)} |" for line in cells]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def graphs_table(lines: list[Line]) -> list[Line]:
    """Return lines of `graph_bits` without the norms where these are the same."""
    norms = "norms", "norms_one_by_one"
    return [{name: each for name, each in line.items() if name not in norms or not line["same"]} for line in lines]


def steps_table(lines: list[Line]) -> list[Line]:
    """Return the speed of each side at each workload, of lines of `gpu_step.py`."""
    turns: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if "turn" in line:
            turns.setdefault((line["workload"], line["side"]), []).append(line)
    found = []
    for (workload, side), several in turns.items():
        rates = [line["sequences_per_second"] for line in several]
        spread = {"sequences_per_second": statistics.median(rates), "least": min(rates), "most": max(rates)}
        held = {"GiB": several[0]["held_bytes"] / 2**30, "turns": len(several)}
        found.append({"workload": workload, "side": side, **spread, **held})
    first = {(line["workload"], line["side"]): line["first"] for line in lines if "first" in line}
    found += [{"workload": key[0], "side": key[1], "first losses and norms": each} for key, each in first.items()]
    return found + [line for line in lines if "differences" in line]


def tests_table(lines: list[Line]) -> list[Line]:
    """Return how many tests passed, and those that did not."""
    counts = Counter(line["outcome"] for line in lines)
    return [{"outcome": outcome, "tests": count} for outcome, count in counts.items()] + [
        {"test": line["test"], "why": line["why"]} for line in lines if line["outcome"] == "failed"
    ]
