"""When a document is in a batch: the steps and rows of a run that hold its text.

A document's own samples are found by inverting the order of each epoch. The samples that take a random second segment
from it can only be found by drawing the segments of all samples.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lucid.analysis.samples import Samples
from lucid.backend import Array
from lucid.data import HELD_OUT, TRAIN, Corpus, Manifest, special_tokens
from lucid.data.origins import Origins, agreement, inputs_of
from lucid.data.tokenizer import without_special_tokens
from lucid.errors import ConfigError
from lucid.files import sha256_of
from lucid.training.formatting import count

# Samples whose segments are drawn at once.
_SAMPLES_AT_ONCE = 1 << 16
# Inputs that a message names.
_NAMED = 3


@dataclass(frozen=True)
class Sighting:
    """A sample that holds text of a document. `random`: as a second segment that does not follow the first.

    The `epoch` counts the passes over the document's corpus. Epochs and steps begin at 1, rows at 0.
    """

    step: int
    row: int
    epoch: int
    random: bool


class CorpusDocument(NamedTuple):
    """A document for training: the corpus, an index in the mixture, and the number of the document in it."""

    corpus: int
    number: int


def own_samples(samples: Samples, document: CorpusDocument, steps: range) -> Iterator[Sighting]:
    """Yield the samples that are made of a document in these steps, in their order."""
    sampler = samples.mixture.samplers[document.corpus]
    wanted = samples.mixture.numbers_in_corpus(document.corpus, samples.numbers(steps))
    per_epoch = sampler.samples_per_epoch
    for epoch in range(wanted.start // per_epoch, -(-wanted.stop // per_epoch)):
        numbers = epoch * per_epoch + sampler.samples_from(document.number, epoch)
        found = numbers[(numbers >= wanted.start) & (numbers < wanted.stop)]
        yield from _sightings(samples, document.corpus, found, epoch, random=False)


def random_samples(samples: Samples, document: CorpusDocument, steps: range) -> Iterator[Sighting]:
    """Yield the samples of these steps that have a random second segment from a document, in their order."""
    sampler = samples.mixture.samplers[document.corpus]
    wanted = samples.mixture.numbers_in_corpus(document.corpus, samples.numbers(steps))
    for start in range(wanted.start, wanted.stop, _SAMPLES_AT_ONCE):
        numbers = np.arange(start, min(start + _SAMPLES_AT_ONCE, wanted.stop))
        epochs, indices = sampler.locate(numbers)
        for epoch in np.unique(epochs).tolist():
            here = np.flatnonzero(epochs == epoch)
            found = numbers[here[sampler.takes_randomly(document.number, epoch, indices[here])]]
            yield from _sightings(samples, document.corpus, found, epoch, random=True)


def _sightings(samples: Samples, corpus: int, numbers: Array, epoch: int, random: bool) -> Iterator[Sighting]:
    for number in samples.mixture.numbers_in_run(corpus, numbers).tolist():
        yield Sighting(*samples.stretch.place_of(number), epoch + 1, random)


def documents_at(samples: Samples, place: str) -> list[CorpusDocument]:
    """Return the documents for training that begin at `place`, "file:line"; none if those that do are held out.

    Raises `ConfigError` if no document begins there.
    """
    match = re.fullmatch(r"(.+):(\d{1,15})", place, re.ASCII | re.DOTALL)
    if not match:
        raise ConfigError(f"--document is {place!r}: give the file and the line where the document begins, FILE:LINE")
    name, line = match[1], int(match[2])
    meant = _inputs_meant(samples, name)
    origins = {key: each for key, each in _origins(samples).items() if key[0] in meant}
    found = {key: each.find(meant[key[0]], line) for key, each in origins.items()}
    if not any(len(exact) for exact, _ in found.values()):
        before = [origin for key, (_, numbers) in found.items() for origin in origins[key].of(numbers)]
        nearest = max(before, key=lambda origin: int(origin.rpartition(":")[2]), default="")
        raise _found_nowhere(samples, place, nearest, meant)
    in_train = {corpus: exact.tolist() for (corpus, split), (exact, _) in found.items() if split == TRAIN}
    return [CorpusDocument(corpus, number) for corpus, numbers in in_train.items() for number in numbers]


def _inputs_meant(samples: Samples, path: str) -> dict[int, list[int]]:
    """Return the inputs that are meant by a path: their numbers, by the number of their corpus.

    They are those that agree with the path best. If that is a file here, they have its content, unless none has.
    Raises `ConfigError` if it is no input of any corpus.
    """
    corpora = [sampler.corpus for sampler in samples.mixture.samplers]
    inputs = {
        (corpus, number): entry
        for corpus, opened in enumerate(corpora)
        for number, entry in enumerate(inputs_of(Manifest.read(opened.folder), opened.folder))
    }
    agreements = {key: agreement(path, samples.names[key[0]], entry.name) for key, entry in inputs.items()}
    best = max(agreements.values())
    if not best:
        some = ", ".join(list(dict.fromkeys(entry.name for entry in inputs.values()))[:_NAMED])
        verb = "was" if len(corpora) == 1 else "were"
        raise ConfigError(
            f"{_joined(corpora)} {verb} not made from {path}, but from {some} ({count(len(inputs), 'input')} in all)"
        )
    meant = [key for key, parts in agreements.items() if parts == best]
    if len(meant) > 1 and os.path.isfile(path) and os.access(path, os.R_OK):
        content = sha256_of(Path(path))
        meant = [key for key in meant if inputs[key].sha256 == content] or meant
    return {corpus: [number for other, number in meant if other == corpus] for corpus, _ in meant}


def _found_nowhere(samples: Samples, place: str, nearest: str, meant: Iterable[int]) -> ConfigError:
    """Return the error that no document of the corpora that are `meant`, as far as is known, begins at `place`."""
    corpora = [samples.mixture.samplers[corpus].corpus for corpus in meant]
    without = [corpus for corpus in corpora if corpus.folder in samples.without_origins]
    known = [corpus for corpus in corpora if corpus not in without]
    sentences = []
    if known:
        hint = f"; the last one before it begins at {nearest}" if nearest else ""
        sentences.append(f"no document in {_joined(known)} begins at {place}{hint}")
    if without:
        sentences.append(
            f"an earlier version of lucid prepared {_joined(without)} and did not note where documents come from: "
            "prepare it again with --overwrite, or look for the document by --text"
        )
    return ConfigError("; and ".join(sentences))


def _joined(corpora: Iterable[Corpus]) -> str:
    return " and ".join(str(corpus.folder) for corpus in corpora)


def _origins(samples: Samples) -> dict[tuple[int, str], Origins]:
    """Return the origins of both splits of those corpora that know them, by the number of the corpus and the split."""
    opened = {
        (number, split): Origins.open(sampler.corpus.folder, split)
        for number, sampler in enumerate(samples.mixture.samplers)
        for split in (TRAIN, HELD_OUT)
        if sampler.corpus.documents_in(split)
    }
    return {key: origins for key, origins in opened.items() if origins}


def documents_with(samples: Samples, text: str) -> list[CorpusDocument]:
    """Return the documents for training in which a text occurs.

    Raises `ConfigError` if it has no tokens, or unknown ones, which stand for any word.
    """
    if text.encode(errors="replace").decode() != text:
        raise ConfigError("--text holds bytes that are not UTF-8: set the terminal's encoding to UTF-8")
    encoded = without_special_tokens(samples.tokenizer).encode(text, add_special_tokens=False)
    ids, unknown = encoded.ids, special_tokens(samples.tokenizer).unknown
    if not ids:
        raise ConfigError("--text has no tokens: give a few words of the document")
    if unknown in ids:
        start, stop = encoded.offsets[ids.index(unknown)]
        raise ConfigError(
            f"--text holds {text[start:stop]!r}, which the run's tokenizer does not know: leave it out, because [UNK] "
            "stands for any such word"
        )
    corpora = [sampler.corpus for sampler in samples.mixture.samplers]
    found = [np.unique(corpus.document_of(corpus.find(np.array(ids)))).tolist() for corpus in corpora]
    return [CorpusDocument(corpus, number) for corpus, numbers in enumerate(found) for number in numbers]
