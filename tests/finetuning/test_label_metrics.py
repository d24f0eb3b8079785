"""Entities as seqeval and conlleval find them, metrics as scikit-learn computes them, and the paired bootstrap."""

from pathlib import Path

import numpy as np
import pytest

from lucid.finetuning.bootstrap import Difference, difference, resampled_values
from lucid.finetuning.entities import entities, mark_entities
from lucid.finetuning.examples import Examples
from lucid.finetuning.metrics import metrics_of

RANDOM = np.random.default_rng(0)


def texts(labels):
    return Examples(Path("a.tsv"), ["x"] * len(labels), [[label] for label in labels], by_word=False)


def sentences(labels):
    return Examples(Path("a.conll"), [["x"] * len(own) for own in labels], labels, by_word=True)


def values(examples, labels, predicted):
    """The metrics of predicted labels, by name."""
    ids = np.array([labels.index(label) for label in predicted])
    return {metric.name: metric.of_seeds()[0] for metric in metrics_of(examples, labels, [ids])}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        # The examples of seqeval's documentation and tests.
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("O O O B-MISC I-MISC I-MISC O", {("MISC", 3, 6)}),
        ("B-PER I-PER O", {("PER", 0, 2)}),
        ("I-MISC B-MISC I-MISC O I-PER", {("MISC", 0, 1), ("MISC", 1, 3), ("PER", 4, 5)}),
        ("I-ORG I-LOC I-LOC", {("ORG", 0, 1), ("LOC", 1, 3)}),
        ("B-A I-A E-A S-A S-A E-A", {("A", 0, 3), ("A", 3, 4), ("A", 4, 5), ("A", 5, 6)}),
        ("B-A-B I-A-B O", {("A-B", 0, 2)}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_entities_are_those_of_conlleval(labels, expected):
    assert entities(labels.split()) == expected


def test_labels_mark_entities_if_all_have_a_mark():
    assert mark_entities(["O", "B-X", "I-X"])
    assert not mark_entities(["O", "NOUN"])
    assert not mark_entities(["O"])


def test_the_f1_of_entities_is_that_of_seqeval():
    # The first example of seqeval's README.
    true = ["O O O B-MISC I-MISC I-MISC O", "B-PER I-PER O"]
    predicted = ["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O", "B-PER", "I-PER", "O"]
    examples = sentences([line.split() for line in true])
    found = values(examples, ["B-MISC", "B-PER", "I-MISC", "I-PER", "O"], predicted)
    assert found == {"entity F1": 0.5, "accuracy": 0.8}


def test_words_without_entities_have_accuracy_alone():
    examples = sentences([["N", "V"], ["N"]])
    assert values(examples, ["N", "V"], ["N", "N", "N"]) == {"accuracy": pytest.approx(2 / 3)}


def test_accuracy_and_macro_f1_are_those_of_scikit_learn():
    # sklearn.metrics.f1_score([0, 1, 2, 0, 1, 2], [0, 2, 1, 0, 0, 1], average="macro") in its documentation.
    names = ["a", "b", "c"]
    true, predicted = [names[number] for number in (0, 1, 2, 0, 1, 2)], [names[number] for number in (0, 2, 1, 0, 0, 1)]
    found = values(texts(true), names, predicted)
    assert found == {"accuracy": pytest.approx(1 / 3), "macro-F1": pytest.approx(0.2666, abs=1e-4)}


def test_a_label_that_is_only_predicted_counts_in_the_macro_f1_and_one_that_does_not_occur_does_not():
    found = values(texts(["a", "a"]), ["a", "b", "c"], ["a", "b"])
    assert found["macro-F1"] == pytest.approx((2 / 3 + 0) / 2)


def test_counts_hold_the_labels_that_occur_and_no_others():
    names = [str(number) for number in range(10_000)]
    _, macro_f1 = metrics_of(texts(["1", "2"]), names, [np.array([1, 7]), np.array([1, 2])])
    assert [counts.shape for counts in macro_f1.counts] == [(2, 9), (2, 9)]
    assert macro_f1.of_seeds() == [pytest.approx(1 / 3), 1]


def test_a_label_that_training_lacks_is_a_mistake_of_any_model():
    assert values(texts(["a", "new"]), ["a", "b"], ["a", "a"])["accuracy"] == 0.5


def test_resampled_values_are_those_of_the_drawn_examples():
    labels = [["B-X", "O"], ["O", "B-X"], ["B-X", "B-X"], ["O", "O"]]
    names, examples = ["B-X", "O"], sentences(labels)
    ids = [RANDOM.integers(0, 2, 8) for _ in range(2)]
    drawn = [3, 0, 0, 2]
    weights = np.bincount(drawn, minlength=4)[None].astype(float)
    again = sentences([labels[number] for number in drawn])
    rows = [np.concatenate([each.reshape(4, 2)[number] for number in drawn]) for each in ids]
    for metric, expected in zip(metrics_of(examples, names, ids), metrics_of(again, names, rows), strict=True):
        assert metric.resampled(weights)[0] == pytest.approx(np.mean(expected.of_seeds())), metric.name


def test_the_interval_of_a_difference_is_that_of_the_normal_distribution():
    # Accuracies of 400 examples: the standard error of the mean of the paired differences is known.
    count = 400
    first, second = RANDOM.random(count) < 0.7, RANDOM.random(count) < 0.8
    a, b = (metrics_of(texts(["x"] * count), ["x", "y"], [np.where(right, 0, 1)])[0] for right in (first, second))
    found = difference(b, a, *resampled_values([a, b])[::-1])
    paired = second.astype(float) - first
    error = paired.std() / count**0.5
    assert found.mean == pytest.approx(paired.mean())
    assert (found.low, found.high) == pytest.approx(
        (found.mean - 1.96 * error, found.mean + 1.96 * error), abs=error / 5
    )


def test_a_model_does_not_differ_from_itself():
    metric = metrics_of(texts(["x", "y", "x"]), ["x", "y"], [np.array([0, 0, 1])])[0]
    drawn = resampled_values([metric, metric])
    assert difference(metric, metric, drawn[1], drawn[0]) == Difference(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (Difference(0.021, 0.008, 0.034), "b is better than a by 2.1 points of F1 (95% interval 0.8 to 3.4)"),
        (Difference(-0.021, -0.034, -0.008), "a is better than b by 2.1 points of F1 (95% interval 0.8 to 3.4)"),
        (
            Difference(0.002, -0.01, 0.014),
            "no difference between b and a can be seen: +0.2 points of F1 (95% interval -1.0 to +1.4)",
        ),
    ],
)
def test_a_difference_is_said_in_words(found, sentence):
    assert found.sentence("b", "a", "F1") == sentence
