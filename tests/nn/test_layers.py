"""Layers that programs use and the model does not."""

import numpy as np
import pytest
from gradient_check import check_gradients

from lucid import nn, tensor

RANDOM = np.random.default_rng(2)
SCORES, LABELS = RANDOM.standard_normal((5, 7)), np.array([3, -100, 0, 6, 3])


def by_hand(scores, labels):
    """The losses of the rows whose label counts."""
    logarithms = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return -logarithms[labels >= 0, labels[labels >= 0]]


@pytest.mark.parametrize("labels", [LABELS, LABELS.astype(np.int32), tensor(LABELS), LABELS.tolist()])
def test_cross_entropy_counts_what_is_labelled(labels):
    losses = by_hand(SCORES, LABELS)
    assert nn.CrossEntropyLoss()(tensor(SCORES), labels).item() == pytest.approx(losses.mean())
    assert nn.CrossEntropyLoss(reduction="sum")(tensor(SCORES), labels).item() == pytest.approx(losses.sum())
    each = nn.CrossEntropyLoss(reduction="none")(tensor(SCORES), labels).numpy()
    np.testing.assert_allclose(each[LABELS >= 0], losses)
    assert each[1] == 0
    other = np.where(LABELS == -100, -1, LABELS)
    assert nn.CrossEntropyLoss(ignore_index=-1)(tensor(SCORES), other).item() == pytest.approx(losses.mean())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_gradient_of_cross_entropy(reduction):
    check_gradients(lambda scores: nn.CrossEntropyLoss(reduction=reduction)(scores, LABELS), SCORES)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (SCORES[None], LABELS, r"scores have shape \(1, 5, 7\); they take \(N, V\): reshape them to \(-1, V\)"),
        (SCORES, LABELS[:4], r"labels have shape \(4,\); they take \(5,\)"),
        (SCORES, LABELS.astype(float), "labels have dtype float64; they take integers"),
        (SCORES, np.array([3, 7, 0, 6, 3]), "labels have the value 7; they take 0 to 6, or -100"),
        (SCORES, np.array([3, -1, 0, 6, 3]), "labels have the value -1"),
    ],
)
def test_cross_entropy_says_what_it_takes(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        nn.CrossEntropyLoss()(tensor(scores), labels)


def test_cross_entropy_knows_three_reductions():
    with pytest.raises(ValueError, match="reduction is 'median'; it takes 'mean', 'sum' or 'none'"):
        nn.CrossEntropyLoss(reduction="median")
