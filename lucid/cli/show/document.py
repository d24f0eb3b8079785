"""Prints the steps whose batches hold a document, and the newest checkpoint that has not seen it."""

import heapq
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise

from lucid.analysis.samples import Samples
from lucid.analysis.sightings import CorpusDocument, Sighting, documents_at, documents_with, own_samples, random_samples
from lucid.errors import ConfigError
from lucid.training.formatting import count
from lucid.training.history import History, Stretch

# A text that is in more documents says too little about any of them.
_MOST_DOCUMENTS = 10
# Samples among which random second segments are searched unasked: for a second, with packing for ten.
_SEARCHED_UNASKED = 2_000_000


def print_sightings(history: History, place: str | None, text: str | None, steps: range | None, as_json: bool) -> None:
    """Print where the document at `place`, or else the documents with this `text`, are in `steps`; None: in all.

    Raises a `LucidError` if there is no such document or step, or if there are too many documents.
    """
    wanted = range(1, history.last + 1) if steps is None else steps
    parts = [Samples(stretch) for stretch in _stretches(history, wanted)]
    first = parts[0]
    documents = documents_at(first, place) if place is not None else documents_with(first, text or "")
    if place is not None and not documents:
        print(f"the document at {place} is held out: no step trains on it", file=sys.stderr if as_json else sys.stdout)
        return
    _check_number(documents, place)
    searched = steps is not None or sum(len(part.numbers(wanted)) for part in parts) <= _SEARCHED_UNASKED
    for number, document in enumerate(documents):
        found = [sighting for part in parts for sighting in _sightings(part, document, wanted, searched)]
        if as_json:
            about = {
                "corpus": first.names[document.corpus],
                "document": document.number,
                "origin": first.origin_of(*document),
            }
            for sighting in found:
                print(json.dumps(about | asdict(sighting)))
        else:
            lines = _lines(history, first, document, found, steps is None)
            print(*([""] if number else []), *lines, sep="\n")
    if not searched and first.stretch.config.data.nsp:
        print(
            "Random second segments were not searched, because only a look at each sample finds them: choose steps "
            "with --steps to search those",
            file=sys.stderr,
        )


def _stretches(history: History, steps: range) -> list[Stretch]:
    """Return the stretches that have these steps. Raises `ConfigError` if they do not have all, or differ in corpus."""
    try:
        found = [history.at(steps[0])]
        while found[-1].last < steps[-1]:
            found.append(history.at(found[-1].last + 1))
    except ConfigError as error:
        raise ConfigError(f"{error}: choose others with --steps") from error
    for this, following in pairwise(found):
        if this.corpus != following.corpus:
            raise ConfigError(
                f"the corpora of the run, or their weights, changed after step {this.last:,}: "
                "choose steps before or after that with --steps"
            )
    return found


def _check_number(documents: list[CorpusDocument], place: str | None) -> None:
    """Raise `ConfigError` if there are no documents, or too many."""
    if not documents:
        raise ConfigError("no document for training has this text in one piece")
    if len(documents) > _MOST_DOCUMENTS:
        raise ConfigError(f"{len(documents):,} documents have this {'place' if place else 'text'}: give more of it")


def _sightings(samples: Samples, document: CorpusDocument, steps: range, searched: bool) -> Iterator[Sighting]:
    """Yield the samples that hold a document, in their order; random second segments only if they are `searched`."""
    own = own_samples(samples, document, steps)
    random = random_samples(samples, document, steps) if searched else iter(())
    return heapq.merge(own, random, key=lambda sighting: (sighting.step, sighting.row))


def _lines(
    history: History, samples: Samples, document: CorpusDocument, found: list[Sighting], whole_run: bool
) -> Iterator[str]:
    origin, corpus = samples.origin_of(*document), samples.mixture.samplers[document.corpus].corpus
    place = f"{origin}, " if origin else ""
    of_corpus = f" of {samples.names[document.corpus]}" if len(samples.names) > 1 else ""
    tokens = count(corpus.tokens_in(document.number), "token")
    yield f"{place}document {document.number:,}{of_corpus} for training, {tokens}"
    for sighting in found:
        how = ", a random second segment" if sighting.random else ""
        yield f"step {sighting.step:,}, row {sighting.row}: epoch {sighting.epoch:,}{how}"
    steps = sorted(history.checkpoints)
    past = sum(sighting.step <= steps[-1] for sighting in found) if steps else 0
    done = f", {past:,} of them up to the newest checkpoint (step {steps[-1]:,})" if steps else ""
    yield f"in {count(len(found), 'sample')}{done}"
    if whole_run and steps:
        before = [step for step in steps if not found or step < found[0].step]
        if before:
            yield f"the newest checkpoint that has not seen it: {history.checkpoints[before[-1]]}"
        else:
            yield "all checkpoints that are there have seen it"
