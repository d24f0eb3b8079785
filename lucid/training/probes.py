"""Linear probes: what the hidden states of a model that is being trained tell about the labels of some texts.

At each evaluation a logistic regression predicts the labels from the means of the last hidden states, which stay as
they are (Alain & Bengio, "Understanding intermediate layers using linear classifier probes", 2016). Its accuracy is
measured by cross-validation. Training reads nothing of it, so a probe changes no bit of a run.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lucid.data import load_tokenizer
from lucid.data.labelled import LabelledTexts, read_labelled
from lucid.data.permutation import Permutation
from lucid.distributed import Communicator, run_on_first_rank
from lucid.errors import DataError
from lucid.files import split_packing
from lucid.models import BERTForPreTraining
from lucid.training.config import RunConfig
from lucid.training.corpora import Corpora, corpus_names
from lucid.training.logistic_regression import correct_in_fold
from lucid.training.text_vectors import Text, TextBatch, TextTokenizer, batches_of, text_vectors

# Texts of a probe. Their choice does not depend on the seed of the run, so that all runs have the same.
MOST_TEXTS = 1000
# The time of a regression grows with the labels.
_MOST_LABELS = 50
_FOLDS = 5


@dataclass(frozen=True)
class ProbeResult:
    """The fraction of `texts` whose label a probe predicts, and the fraction that has the most frequent label."""

    name: str
    accuracy: float
    most_frequent: float
    texts: int

    def as_dict(self) -> dict[str, float]:
        """Return the accuracy by its name in the log."""
        return {f"probe/{self.name} accuracy": self.accuracy}

    def sentence(self) -> str:
        """Return one line for users."""
        return (
            f"probe ({self.name}): accuracy {self.accuracy:.1%} (most frequent label: {self.most_frequent:.1%}; "
            f"{self.texts:,} texts)"
        )


@dataclass(frozen=True, eq=False)
class Probe:
    """Texts with labels (int64 [texts], below `classes`); text i is in fold i % 5. `digest` is a hash of both."""

    name: str
    batches: list[TextBatch]
    labels: np.ndarray
    classes: int
    digest: str

    def result(self, model: BERTForPreTraining, communicator: Communicator) -> ProbeResult:
        """Return the accuracy of the probe on `model`, the same on all ranks, which share the work and all call this.

        It is NaN if hidden states are not finite.
        """
        features = text_vectors(model.bert, self.batches, communicator, "mean")
        folds = np.arange(len(self.labels)) % _FOLDS
        correct = 0
        if is_finite := bool(np.isfinite(features).all()):
            own = range(communicator.rank, _FOLDS, communicator.size)
            correct = sum(correct_in_fold(features, self.labels, self.classes, folds == fold) for fold in own)
        total = communicator.all_reduce_scalar(correct)
        count = len(self.labels)
        accuracy = total / count if is_finite else math.nan
        return ProbeResult(self.name, accuracy, int(np.bincount(self.labels).max()) / count, count)


def open_probes(
    config: RunConfig,
    corpora: Corpora,
    communicator: Communicator,
    is_resumed: bool = False,
    before: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[Probe], list[str]]:
    """Return the probes of a run, and on the first rank sentences about what is left out of their files.

    The first rank alone reads them. A run that `is_resumed` goes on without a file that is missing. `before` has the
    digests of earlier probes by name on the first rank, where a sentence names those that differ now. All ranks call
    this; a `DataError` about a file is raised on all.
    """
    if not config.train.probes:
        return [], []
    messages: list[str] = []
    text = run_on_first_rank(communicator, lambda: json.dumps(_read(config, messages, is_resumed)))
    tokenizer = TextTokenizer(load_tokenizer(corpora.tokenizer_folder), config.data.sequence_length)
    probes = [_probe(content, tokenizer) for content in json.loads(text)]
    messages += [
        f"train.probe: the texts or labels of {probe.name} are not those of before: its accuracies from here on cannot "
        "be compared with earlier ones"
        for probe in probes
        if before.get(probe.name, probe.digest) != probe.digest
    ]
    return probes, messages


def _probe(content: Mapping[str, Any], tokenizer: TextTokenizer) -> Probe:
    texts: list[Text] = [text if isinstance(text, str) else tuple(text) for text in content["texts"]]
    labels = np.array(content["labels"])
    digest = hashlib.sha256(json.dumps([content["texts"], content["labels"]]).encode()).hexdigest()
    return Probe(content["name"], [*batches_of(texts, tokenizer)], labels, content["classes"], digest)


def _read(config: RunConfig, messages: list[str], is_resumed: bool) -> list[dict[str, Any]]:
    paths, found = config.train.probes, []
    for name, path in zip(corpus_names([split_packing(path)[0].with_suffix("") for path in paths]), paths, strict=True):
        if is_resumed and not path.exists():
            messages.append(f"train.probe: {path} is missing: the run goes on without this probe")
        else:
            found.append({"name": name, **_chosen(path, config, messages)})
    return found


def _chosen(path: Path, config: RunConfig, messages: list[str]) -> dict[str, Any]:
    """Return the texts of a probe and their labels, drawn from all over the file, which may be sorted by label."""
    found = read_labelled(path)
    _check(found, config)
    messages += [f"train.probe: {remark}" for remark in found.remarks]
    count = len(found.texts)
    if count > MOST_TEXTS:
        messages.append(f"train.probe: {path} has {count:,} texts, of which {MOST_TEXTS:,} are taken")
    chosen = Permutation(count, seed=0, epoch=0).at(np.arange(min(count, MOST_TEXTS))).tolist()
    names = sorted({found.labels[number] for number in chosen})
    numbers = {label: number for number, label in enumerate(names)}
    return {
        "texts": [(found.texts[each], found.pairs[each]) if found.pairs else found.texts[each] for each in chosen],
        "labels": [numbers[found.labels[each]] for each in chosen],
        "classes": len(names),
    }


def _check(found: LabelledTexts, config: RunConfig) -> None:
    if len(found.label_names) < 2:
        raise DataError(f"train.probe: all rows of {found.path} have the label {found.label_names[0]!r}: add others")
    if len(found.label_names) > _MOST_LABELS:
        raise DataError(
            f"train.probe: {found.path} has {len(found.label_names):,} labels, and a probe takes {_MOST_LABELS} at "
            "most: check that its column holds classes, or merge them"
        )
    if len(found.texts) < 2 * _FOLDS:
        raise DataError(
            f"train.probe: {found.path} has {len(found.texts)} texts, too few for {_FOLDS} folds: add some hundreds"
        )
    if found.pairs is not None and config.model.type_vocab_size < 2:
        raise DataError(
            f"train.probe: {found.path} has pairs, but the model takes single texts (model.type_vocab_size is 1): use "
            "a file without pairs"
        )
