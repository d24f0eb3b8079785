"""The FLOPs of a step are those of its matrix products."""

import math

import numpy as np
import pytest

from lucid.models import BERTConfig, BERTForPreTraining
from lucid.models.bert.flops import forward_flops, forward_flops_each

CONFIG = BERTConfig(
    vocab_size=50,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=16,
)


@pytest.fixture
def multiplied(monkeypatch):
    """The FLOPs of each product that NumPy has computed, of the float64 models of this test."""
    products = []
    matmul = np.matmul

    def counting(left, right, **options):
        result = matmul(left, right, **options)
        products.append(2 * result.size * left.shape[-1])
        return result

    monkeypatch.setattr(np, "matmul", counting)
    return products


def test_the_flops_equal_those_of_the_products_of_forward_and_backward(multiplied):
    model = BERTForPreTraining(CONFIG)
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float64)
    draw = np.random.default_rng(0)
    labels = np.full((3, 7), -100)
    labels[0, 2] = labels[1, 4] = labels[1, 5] = 9
    flops = forward_flops(CONFIG, np.full(3, 7), masked_tokens=3)
    loss = model.get_loss(labels, np.array([0, 1, 1]), draw.integers(1, 50, (3, 7)))
    assert sum(multiplied) == flops.linear + flops.attention
    loss.backward()
    assert sum(multiplied) == flops.training


def test_neither_padding_nor_other_sequences_count():
    together = forward_flops(CONFIG, np.array([5, 12]), masked_tokens=3)
    alone = [forward_flops(CONFIG, np.array([5]), 1), forward_flops(CONFIG, np.array([12]), 2)]
    assert together.training == sum(flops.training for flops in alone)
    each = forward_flops_each(CONFIG, np.array([5, 12]), np.array([1, 2]))
    assert each.tolist() == [flops.linear + flops.attention for flops in alone]


def test_a_step_of_bert_base_takes_559_billion():
    flops = forward_flops(BERTConfig(), np.full(8, 128), masked_tokens=round(0.15 * 8 * 128))
    assert math.isclose(flops.training, 558.6e9, rel_tol=1e-4)
