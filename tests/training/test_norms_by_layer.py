"""The log has the norms of gradients and the sizes of updates by layer: the same bits on any number of ranks."""

import json
import math

import numpy as np
import pytest
from test_sharded_runs import EXACT, LARGER, SHARDED

from lucid.models import BERTConfig, BERTForPreTraining
from lucid.nn import flatten
from lucid.training.log.norms_by_layer import NormsByLayer, layer_of

KINDS = "gradient_norm", "update_ratio"
LAYERS = ["embeddings", "encoder.layer.0", "encoder.layer.1", "heads"]


def norms_in(run_folder):
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "_norm" in name or "_ratio" in name} for line in lines]


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("bert.embeddings.word_embeddings.weight", "embeddings"),
        ("bert.embeddings.LayerNorm.bias", "embeddings"),
        ("bert.encoder.layer.11.attention.self.query.weight", "encoder.layer.11"),
        ("bert.pooler.dense.weight", "heads"),
        ("cls.predictions.bias", "heads"),
    ],
)
def test_every_parameter_belongs_to_a_layer(parameter, layer):
    assert layer_of(parameter) == layer


def test_the_gradients_norm_is_that_of_the_norms_of_all_layers(undisturbed):
    for line in filter(None, norms_in(undisturbed(2))):
        assert line.keys() == {"gradient_norm", *(f"{kind}/{name}" for kind in KINDS for name in LAYERS)}
        norms = [line[f"gradient_norm/{name}"] for name in LAYERS]
        assert math.hypot(*norms) == pytest.approx(line["gradient_norm"], rel=1e-12)
        assert all(0 < line[f"update_ratio/{name}"] < 1 for name in LAYERS)


def test_under_the_exact_reduction_a_shard_on_each_of_four_ranks_gives_the_bits_of_one_rank(undisturbed):
    settings = (*EXACT, *LARGER, "optimizer.name=lamb")
    one, four = undisturbed(1, *settings), undisturbed(4, *settings, SHARDED, "distributed.backend=mpi")
    assert norms_in(one) == norms_in(four)


def test_layers_are_in_the_order_of_their_numbers_and_a_skipped_step_has_no_norms():
    config = BERTConfig(vocab_size=30, hidden_size=8, num_hidden_layers=11, num_attention_heads=2, intermediate_size=8)
    flat = flatten(BERTForPreTraining(config))
    norms, squares = NormsByLayer(flat), np.ones((len(flat.bounds) - 1, 3))
    names = [name.partition("/")[2] for name in norms.metrics(squares) if name.startswith("update_ratio/")]
    assert names == ["embeddings", *(f"encoder.layer.{number}" for number in range(11)), "heads"]
    squares[3, 0] = math.inf
    assert all(map(math.isnan, norms.metrics(squares).values()))


def test_weights_of_zero_have_no_ratio():
    flat = flatten(BERTForPreTraining(BERTConfig(30, 8, 1, 2, 8)))
    squares = np.zeros((len(flat.bounds) - 1, 3))
    found = NormsByLayer(flat).metrics(squares)
    assert found["gradient_norm/heads"] == 0
    assert math.isnan(found["update_ratio/heads"])
