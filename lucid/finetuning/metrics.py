"""How good predictions are: metrics that are functions of sums over examples, so that examples can be resampled.

A metric keeps counts for each example, sparse: [E, K]. Its value follows from their sums over examples. E examples,
L labels, K counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_array

from lucid.backend import Array
from lucid.finetuning.entities import entities, mark_entities
from lucid.finetuning.examples import Examples


@dataclass(frozen=True)
class Metric:
    """A metric of predictions: `counts` for each seed [E, K], and `value`, which takes sums [..., K] to values [...].

    Values are from 0 to 1.
    """

    name: str
    counts: Sequence[csr_array]
    value: Callable[[Array], Array]

    def of_seeds(self) -> list[float]:
        """Return the value for each seed."""
        return [float(self.value(counts.sum(axis=0))) for counts in self.counts]

    def resampled(self, weights: Array) -> Array:
        """Return the mean over seeds where example e counts `weights[r, e]` times: float64 [R] of weights [R, E]."""
        return np.mean([self.value((counts.T @ weights.T).T) for counts in self.counts], axis=0)


def metrics_of(examples: Examples, labels: Sequence[str], predictions: Sequence[Array]) -> list[Metric]:
    """Return the metrics of the predicted ids of `labels`, int64 [W] for each seed; the first is what counts.

    For texts: accuracy and macro-F1. For words: F1 of entities if the labels mark some, and accuracy.
    """
    named = [[labels[number] for number in ids.tolist()] for ids in predictions]
    true = [label for own in examples.labels for label in own]
    owners = np.repeat(np.arange(len(examples)), [len(own) for own in examples.labels])
    accuracy = Metric(
        "accuracy", [_correct(true, ids, owners) for ids in named], lambda sums: sums[..., 0] / sums[..., 1]
    )
    if not examples.by_word:
        # Labels that do not occur would only take memory.
        names = sorted({*true, *(name for ids in named for name in ids)})
        return [accuracy, Metric("macro-F1", [_by_label(true, ids, names) for ids in named], _macro_f1)]
    if not mark_entities(labels):
        return [accuracy]
    bounds = np.cumsum([0, *map(len, examples.labels)]).tolist()
    return [Metric("entity F1", [_by_entity(true, ids, bounds) for ids in named], _f1), accuracy]


def _correct(true: Sequence[str], predicted: Sequence[str], owners: Array) -> csr_array:
    """Return how many labels of each example are predicted right, and how many it has: [E, 2]."""
    right = np.array([a == b for a, b in zip(true, predicted, strict=True)], np.float64)
    return csr_array(np.stack([np.bincount(owners, right), np.bincount(owners)], axis=1))


def _by_label(true: Sequence[str], predicted: Sequence[str], names: Sequence[str]) -> csr_array:
    """Return, for each label, whether it is predicted and right, predicted, and right, of each example: [E, 3 L]."""
    numbers = {name: number for number, name in enumerate(names)}
    of_true, of_predicted = (np.array([numbers[name] for name in each]) for each in (true, predicted))
    count, rows = len(names), np.arange(len(true))
    hits = np.flatnonzero(of_true == of_predicted)
    columns = np.concatenate([of_true[hits], count + of_predicted, 2 * count + of_true])
    examples = np.concatenate([hits, rows, rows])
    return csr_array((np.ones(len(columns)), (examples, columns)), shape=(len(true), 3 * count))


def _macro_f1(sums: Array) -> Array:
    """Return the mean of the F1 of all labels that occur among the true or the predicted ones."""
    hits, predicted, true = np.split(sums, 3, axis=-1)
    occurs = predicted + true > 0
    of_label = 2 * hits / np.where(occurs, predicted + true, 1)
    return of_label.sum(axis=-1) / occurs.sum(axis=-1)


def _by_entity(true: Sequence[str], predicted: Sequence[str], bounds: Sequence[int]) -> csr_array:
    """Return the entities of each example that are found, that are predicted, and that are there: [E, 3]."""
    counts = np.zeros((len(bounds) - 1, 3))
    for row, (start, stop) in enumerate(pairwise(bounds)):
        there, found = entities(true[start:stop]), entities(predicted[start:stop])
        counts[row] = len(there & found), len(found), len(there)
    return csr_array(counts)


def _f1(sums: Array) -> Array:
    """Return the F1 of all entities together, 0 if there are none."""
    together = sums[..., 1] + sums[..., 2]
    return 2 * sums[..., 0] / np.where(together > 0, together, 1)
