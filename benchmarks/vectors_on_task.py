"""Compares models by their vectors, which stay as they are: how well do they tell the labels of texts?

    python benchmarks/vectors_on_task.py TASK NAME...

TASK holds `train.tsv` and `test.tsv`, with a label in the second column. `lucid embed` has written `NAME-train.npy` and
`NAME-test.npy`. The table shows accuracies on the test texts, of two classifiers that are fitted to 100, 300 or all
training texts, as means over five draws of the 100 or 300:

- regression: a logistic regression on standardised features. Its penalty is one of four, chosen for each model and draw
  by cross-validation on the drawn training texts;
- neighbour: the label of the training text with the largest cosine.

Each model is then compared with the first, with an interval from the paired bootstrap over the test texts.
"""

import sys
from pathlib import Path

import numpy as np

from lucid.finetuning.bootstrap import difference, resampled_values
from lucid.finetuning.examples import read_task
from lucid.finetuning.metrics import Metric, metrics_of
from lucid.training.logistic_regression import fit

SIZES, DRAWS, FOLDS = (100, 300, None), 5, 5
# Factors of the standardised features. The penalty of the weights is fixed, so the square of a factor divides it.
FACTORS = 0.03, 0.1, 0.3, 1.0


def regression(known: np.ndarray, labels: np.ndarray, asked: np.ndarray, classes: int) -> np.ndarray:
    """Return the predicted label of each row of `asked`."""
    mean, deviation = known.mean(axis=0), known.std(axis=0) + 1e-12
    known, asked = (known - mean) / deviation, (asked - mean) / deviation
    folds = np.arange(len(known)) % FOLDS

    def score(factor: float) -> int:
        correct = 0
        for fold in range(FOLDS):
            own = folds != fold
            weights, bias = fit(factor * known[own], labels[own], classes)
            predicted = (factor * known[~own] @ weights + bias).argmax(axis=1)
            correct += np.count_nonzero(predicted == labels[~own])
        return correct

    factor = max(FACTORS, key=score)
    weights, bias = fit(factor * known, labels, classes)
    return (factor * asked @ weights + bias).argmax(axis=1)


def neighbour(known: np.ndarray, labels: np.ndarray, asked: np.ndarray, classes: int) -> np.ndarray:
    """Return the label of the nearest row of `known` for each row of `asked`."""
    known, asked = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (known, asked))
    return labels[(asked @ known.T).argmax(axis=1)]


def main(folder: Path, names: list[str]) -> None:
    task = read_task(folder / "train.tsv", folder / "test.tsv")
    numbers = {label: number for number, label in enumerate(task.labels)}
    labels = np.array([numbers[label] for (label,) in task.train.labels])
    vectors = {name: [np.load(f"{name}-{part}.npy").astype(np.float64) for part in ("train", "test")] for name in names}
    for classify in (regression, neighbour):
        for size in SIZES:
            count = size or len(labels)
            seeds = range(DRAWS if size else 1)
            draws = [np.random.default_rng(seed).permutation(len(labels))[:count] for seed in seeds]
            metrics = []
            for name in names:
                train, test = vectors[name]
                found = [classify(train[drawn], labels[drawn], test, len(numbers)) for drawn in draws]
                metrics.append(metrics_of(task.test, task.labels, found)[0])
            report(f"{classify.__name__}, {count} texts", names, metrics)


def report(what: str, names: list[str], metrics: list[Metric]) -> None:
    drawn = resampled_values(metrics)
    for name, metric, values in zip(names, metrics, drawn, strict=True):
        accuracies = metric.of_seeds()
        print(f"{what}: {name} {np.mean(accuracies):.1%} ({min(accuracies):.1%} to {max(accuracies):.1%})", flush=True)
        if metric is not metrics[0]:
            print("   ", difference(metric, metrics[0], values, drawn[0]).sentence(name, names[0], "accuracy"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
