"""The samples of any step of a run, with all that made them: segments, masks, labels, documents, ranks, losses.

They are made by the sampler that training uses, from the same coordinates.
"""

import math
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from lucid.backend import Array
from lucid.data import TRAIN, Batch, Mixture, load_tokenizer, special_tokens
from lucid.data.origins import Origins
from lucid.data.pairs import SegmentPairs
from lucid.data.tokenizer import tokens_by_id
from lucid.errors import CheckpointError
from lucid.kernels.masking import IGNORE_INDEX
from lucid.models import BERTForPreTraining
from lucid.training.config import RunConfig
from lucid.training.corpora import corpus_names, identity_of, open_mixture
from lucid.training.history import Stretch
from lucid.training.micro_batches import labelled_rows

# How the input differs from the token to be found.
How = Literal["masked", "replaced", "kept"]


@dataclass(frozen=True)
class Token:
    """A token of the input. `label` is the token to be found in its place, None where none is."""

    input: str
    label: str | None = None
    how: How | None = None


@dataclass(frozen=True)
class Segment:
    """The tokens of a sequence that have one token type, special tokens included.

    `document` numbers the document in the training documents of its corpus, and `origin` says where it comes from:
    "file:line", None if the corpus does not know.
    """

    token_type: int
    document: int
    origin: str | None
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Sequence:
    """One sequence. `nsp_label` is 0 if the second segment follows the first, 1 if it is random, None without NSP."""

    segments: tuple[Segment, ...]
    nsp_label: int | None


@dataclass(frozen=True)
class Losses:
    """Losses (nats), summed over the `masked` tokens and the `pairs` of a row. Dropout is off."""

    mlm: float
    masked: int
    nsp: float
    pairs: int

    @classmethod
    def total(cls, parts: Iterable["Losses"]) -> "Losses":
        """Return the sums over several rows."""
        return cls(*map(sum, zip(*((part.mlm, part.masked, part.nsp, part.pairs) for part in parts), strict=True)))


@dataclass(frozen=True)
class Sample:
    """A row of a step's global batch.

    `sample` is its number in the run, `epoch` and `index` are those of its corpus. All are counted from 0, but epochs
    from 1.
    """

    row: int
    sample: int
    corpus: str
    epoch: int
    index: int
    padding: int
    sequences: tuple[Sequence, ...]


class Samples:
    """The samples of a stretch of a run, of one corpus or several: `names` and `mixture.samplers` have one for each.

    Raises a `LucidError` if a corpus is not the one that the run has had.
    """

    def __init__(self, stretch: Stretch) -> None:
        self.stretch = stretch
        self.mixture = open_same_corpora(stretch.config, stretch.corpus)
        self.names = corpus_names(stretch.config.data.folders)
        self.tokenizer = load_tokenizer(self.mixture.samplers[0].corpus.tokenizer_folder)
        self._texts, self._mask = tokens_by_id(self.tokenizer), special_tokens(self.tokenizer).mask
        self._origins = [Origins.open(sampler.corpus.folder, TRAIN) for sampler in self.mixture.samplers]

    @property
    def without_origins(self) -> list[Path]:
        """The folders of the corpora that do not know where their documents come from."""
        corpora = [sampler.corpus for sampler in self.mixture.samplers]
        return [corpus.folder for corpus, origins in zip(corpora, self._origins, strict=True) if origins is None]

    def numbers(self, steps: range) -> range:
        """Return the numbers, in the run, of the samples of those of these steps that are in the stretch."""
        first, stop = max(steps.start, self.stretch.first), min(steps.stop, self.stretch.last + 1)
        return range(self.stretch.samples_before(first), self.stretch.samples_before(max(first, stop)))

    def batch(self, step: int, rows: range) -> Batch:
        """Return these rows of the global batch of a step."""
        masking_rate = self.stretch.config.masking_rate.at(step - 1)
        return self.mixture.batch(self.stretch.samples_before(step), rows, masking_rate)

    def samples(self, step: int, batch: Batch) -> Iterator[Sample]:
        """Yield the samples of a batch of this step."""
        for position, row in enumerate(batch.samples.tolist()):
            number = self.stretch.samples_before(step) + row
            corpora, numbers = self.mixture.choose(np.array([number]))
            corpus, sampler = int(corpora[0]), self.mixture.samplers[corpora[0]]
            epoch, index = (int(found[0]) for found in sampler.locate(numbers))
            sequences = self._sequences(corpus, batch.slice(position, position + 1), sampler.segments(numbers)[0])
            padding = int(np.count_nonzero(batch.sequence_ids[position] == 0))
            yield Sample(row, number, self.names[corpus], epoch + 1, index, padding, tuple(sequences))

    def _sequences(self, corpus: int, row: Batch, pairs: SegmentPairs) -> Iterator[Sequence]:
        """Yield the sequences of a batch of one row, whose segments are `pairs`."""
        starts = np.stack([pairs.first_start, pairs.second_start], axis=1)
        documents = self.mixture.samplers[corpus].corpus.document_of(starts).tolist()
        for number, label in enumerate(row.nsp_labels.tolist()):
            mine = row.sequence_ids[0] == number + 1
            segments = [
                self._segment(row, mine & (row.token_type_ids[0] == kind), kind, corpus, documents[number][kind])
                for kind in np.unique(row.token_type_ids[0, mine]).tolist()
            ]
            yield Sequence(tuple(segments), None if label == IGNORE_INDEX else label)

    def _segment(self, row: Batch, here: Array, token_type: int, corpus: int, document: int) -> Segment:
        ids, labels = row.input_ids[0, here].tolist(), row.mlm_labels[0, here].tolist()
        return Segment(token_type, document, self.origin_of(corpus, document), tuple(map(self._token, ids, labels)))

    def origin_of(self, corpus: int, document: int) -> str | None:
        """Return "file:line" of a training document, None if the corpus does not know it."""
        origins = self._origins[corpus]
        return origins.of(np.array([document]))[0] if origins else None

    def _token(self, number: int, label: int) -> Token:
        text = self._texts[number]
        if label == IGNORE_INDEX:
            return Token(text)
        how: How = "masked" if number == self._mask else "kept" if number == label else "replaced"
        return Token(text, self._texts[label], how)


def open_same_corpora(config: RunConfig, identity: str) -> Mixture:
    """Open the documents for training of a run, whose corpora had this `identity`, "" before it has begun.

    Raises `CheckpointError` if they are others now.
    """
    folders = config.data.folders
    if identity and (missing := [folder for folder in folders if not folder.exists()]):
        raise CheckpointError(f"the corpus of the run is not at {_joined(missing)}: {_how_to_say_where(config)}")
    mixture = open_mixture(config)
    if identity and identity_of(mixture) != identity:
        raise CheckpointError(
            f"the run in {config.run_folder} was trained with another corpus than {_joined(folders)}: put that back, "
            f"or {_how_to_say_where(config)}"
        )
    return mixture


def _joined(folders: Iterable[Path]) -> str:
    return " and ".join(map(str, folders))


def _how_to_say_where(config: RunConfig) -> str:
    """Return what a user types if the corpora of a run have moved."""
    if len(config.data.corpora) == 1:
        return "say where it is (data.path=FOLDER)"
    known = yaml.safe_dump(config.as_dict()["data"]["path"], default_flow_style=True, width=math.inf).strip()
    return f"say where all are, with their weights, as in {shlex.quote(f'data.path={known}')}"


def row_losses(model: BERTForPreTraining, batch: Batch) -> Iterator[Losses]:
    """Yield the losses of each row of a batch, which add up to those of training but for dropout."""
    with model.evaluating():
        for position in range(len(batch.samples)):
            mlm, nsp = model.losses(labelled_rows(batch.slice(position, position + 1)).on(model.device))
            yield Losses(mlm.loss.item(), mlm.count, nsp.loss.item(), nsp.count)
