"""A model takes the estimated memory: for its parameters, and for activations on the CPU."""

import gc
import tracemalloc

import numpy as np
import pytest

from lucid import kernels, random
from lucid.kernels import reference
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.models.bert.memory import NumberSizes, activation_bytes, parameter_count
from lucid.models.bert.token_rows import LabelledRows
from lucid.nn import flatten

WIDE = {"vocab_size": 3000, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512}
MANY_HEADS = {"vocab_size": 200, "hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 96}
SEQUENCES, LENGTH, MASKED = 8, 96, 14
FLOAT32 = NumberSizes(activation=4, factor=4, keeps_scores=True)


@pytest.mark.parametrize("shape", [{}, WIDE, MANY_HEADS, {"type_vocab_size": 1, "num_hidden_layers": 1}])
def test_the_parameter_count_is_that_of_a_model(shape):
    config = BERTConfig(**{"vocab_size": 50, **shape, "hidden_size": 48, "num_attention_heads": 2})
    assert parameter_count(config) == sum(parameter.size for parameter in BERTForPreTraining(config).parameters())


@pytest.mark.parametrize("shape", [WIDE, MANY_HEADS], ids=["wide", "many heads"])
@pytest.mark.parametrize("recompute", ["none", "attention", "layer"])
def test_activations_take_about_the_estimated_memory(shape, recompute):
    if kernels.of(np.zeros(1, np.float32)) is reference:
        pytest.skip("the reference takes more, for what it computes in between")
    config = BERTConfig(**shape, num_hidden_layers=4, max_position_embeddings=LENGTH)
    said = activation_bytes(config, FLOAT32, recompute, SEQUENCES, LENGTH, masked_tokens=SEQUENCES * MASKED)
    assert most_allocated(config, recompute) == pytest.approx(said, rel=0.15)


def most_allocated(config, recompute):
    """The most bytes that forward and backward take besides parameters and their gradients."""
    model, draw = BERTForPreTraining(config), np.random.default_rng(0)
    model.bert.encoder.recompute(recompute)
    flat = flatten(model)
    ids = draw.integers(5, config.vocab_size, (SEQUENCES, LENGTH))
    labels = np.where(np.arange(LENGTH) < MASKED, ids, -100)
    rows = LabelledRows.packed(
        input_ids=ids,
        sequence_ids=np.ones_like(ids),
        token_type_ids=np.zeros_like(ids),
        mlm_labels=labels,
        nsp_labels=draw.integers(0, 2, SEQUENCES),
    )

    def step():
        flat.zero_grad()
        with random.at(random.Coordinates.of(seed=0, step=0, samples=np.arange(SEQUENCES))):
            mlm, nsp = model.losses(rows)
            (mlm.loss + nsp.loss).backward()

    step()  # compiles and sets up
    gc.collect()
    tracemalloc.start()
    try:
        step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_bfloat16_halves_activations_on_a_gpu_and_factors_of_products_on_a_cpu():
    def said(*sizes):
        return activation_bytes(BERTConfig(), NumberSizes(*sizes), "none", 1, 16, masked_tokens=2)

    on_gpu, rounded_on_gpu = said(4, 4, False), said(2, 2, False)
    assert rounded_on_gpu == pytest.approx(on_gpu / 2, rel=0.02)
    assert rounded_on_gpu < said(4, 2, True) < said(4, 4, True)


@pytest.mark.parametrize(("length", "bytes_of_row"), [(64, 16), (512, 72), (65, 31)])
def test_dropout_of_attention_keeps_bits_on_a_gpu(length, bytes_of_row):
    def said(**settings):
        config = BERTConfig(num_hidden_layers=3, num_attention_heads=12, **settings)
        return activation_bytes(config, NumberSizes(2, 2, keeps_scores=False), "none", 4, length, masked_tokens=1)

    assert said() - said(attention_probs_dropout_prob=0) == 3 * 12 * 4 * length * bytes_of_row
