"""Explains a run while it trains, at its end, and afterwards, from its log, its settings and its corpora."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lucid.errors import DataError
from lucid.training.explanations import corpora, level, shape, steps
from lucid.training.explanations.curve import Curve
from lucid.training.explanations.facts import Facts
from lucid.training.explanations.finding import Finding
from lucid.training.log.metrics import Entry, is_evaluation, log_of

# Each is silent where it lacks what it needs.
_RULES: tuple[Callable[[Curve, Facts], Iterator[Finding]], ...] = (
    corpora.repeating,
    corpora.unfit_tokenizers,
    steps.skipped,
    level.against_counts,
    shape.rising,
    shape.overfitting,
    level.pairs_at_chance,
    steps.spiking,
)

# The log is looked at again when the run is longer by this factor, so that all looks together cost as twenty last ones.
_LONGER = 1.1


def explain(entries: Sequence[Entry], facts: Facts) -> list[Finding]:
    """Return what the curve says so far, alarms first. Never raises for what a log may contain."""
    curve = Curve(entries)
    with np.errstate(all="ignore"):
        found = [finding for rule in _RULES for finding in rule(curve, facts)]
    return sorted(found, key=lambda finding: not finding.is_alarm)


def findings_in(run_folder: Path, facts: Facts) -> list[Finding]:
    """Return what the log of a run says, nothing if it cannot be read."""
    try:
        return explain(log_of(run_folder), facts)
    except DataError:
        return []


class Explainer:
    """Explains a run while it trains: each new entry of its log may bring findings, each of which is said once.

    `entries` are those of earlier starts; what they say has been said.
    """

    def __init__(self, facts: Facts, entries: Iterable[Entry]) -> None:
        self._facts, self._entries = facts, list(entries)
        # By the name of each finding, the step after which this start said it; None if an earlier one has.
        found = explain(self._entries, facts) if self._entries else []
        self._said: dict[str, int | None] = dict.fromkeys((finding.name for finding in found), None)
        # By whether an entry is an evaluation, on which other rules rest than on lines of training.
        self._next_look = {True: 0.0, False: 0.0}

    def add(self, entry: Entry) -> list[Finding]:
        """Take an entry of the log, and return what is new."""
        self._entries.append(entry)
        kind = is_evaluation(entry)
        if entry["step"] < self._next_look[kind]:
            return []
        self._next_look[kind] = entry["step"] * _LONGER
        found = [finding for finding in explain(self._entries, self._facts) if finding.name not in self._said]
        self._said.update((finding.name, entry["step"]) for finding in found)
        return found

    def said_after(self, step: int) -> set[str]:
        """Return the names of the findings that this start said after a step."""
        return {name for name, said in self._said.items() if said == step}
