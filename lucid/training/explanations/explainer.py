"""Explains a run while it trains, at its end, and afterwards, from its log, its settings and its corpora."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from lucid.data import Mixture
from lucid.errors import DataError
from lucid.training.config import RunConfig
from lucid.training.corpora import corpus_names
from lucid.training.counts.kept import KeptCounts
from lucid.training.counts.repeats import repeated_share
from lucid.training.explanations.curve import CorpusFacts, Facts
from lucid.training.explanations.rules import Finding, explain
from lucid.training.metrics import Entry, is_evaluation, log_of

# The log is looked at again when the run is longer by this factor, so that all looks together cost as twenty last ones.
_LONGER = 1.1


def facts_of(config: RunConfig, mixture: Mixture, counts: KeptCounts) -> Facts:
    """Return the facts of a run with these settings and corpora; `counts` keeps what is counted in them."""
    return Facts.of(config, list(_corpus_facts(config, mixture, counts)))


def _corpus_facts(config: RunConfig, mixture: Mixture, counts: KeptCounts) -> Iterator[CorpusFacts]:
    for name, sampler in zip(corpus_names(config.data.folders), mixture.samplers, strict=True):
        split = sampler.corpus.contents
        per_word = split.tokens / split.words if split.words else None
        yield CorpusFacts(name, split.unknown / split.tokens, per_word, repeated_share(sampler.corpus, counts))


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
        self._said = {finding.name for finding in explain(self._entries, facts)} if self._entries else set()
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
        self._said.update(finding.name for finding in found)
        return found
