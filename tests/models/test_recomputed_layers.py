"""Recomputing activations in backward changes neither losses nor gradients."""

from contextlib import nullcontext

import numpy as np
import pytest
from tiny_bert import CONFIG, IGNORED, B, T, V

import lucid
from lucid import random
from lucid.distributed import DistributedDataParallel
from lucid.kernels.sequences import Sequences
from lucid.models import BERTForPreTraining

PARTS = pytest.mark.parametrize("part", ["attention", "layer"])


def build(part):
    lucid.manual_seed(0)
    model = BERTForPreTraining(CONFIG)
    model.bert.encoder.recompute(part)
    return model


def batch(seed):
    generator = np.random.default_rng(seed)
    ids = generator.integers(1, V, (B, T))
    return {
        "input_ids": ids,
        "attention_mask": (np.arange(T) < generator.integers(T // 2, T + 1, (B, 1))).astype(np.int64),
        "mlm_labels": np.where(generator.random((B, T)) < 0.3, ids, IGNORED),
        "nsp_labels": generator.integers(0, 2, B),
    }


def gradients(model):
    return {name: parameter.grad.numpy().copy() for name, parameter in model.named_parameters()}


def assert_same_bits(found, expected):
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@PARTS
@pytest.mark.parametrize("training", [True, False])
def test_recomputation_does_not_change_losses_and_gradients(part, training):
    found = []
    for what in ("none", part):
        model = build(what).train(training)
        losses = []
        for seed in range(2):
            loss = model.get_loss(**batch(seed))
            model.get_accuracy(**batch(seed))
            model.train(not training)  # what runs again does so in the mode that it ran in at first
            loss.backward()
            model.train(training)
            losses.append(loss.item())
        found.append({"loss": np.array(losses)} | gradients(model))
    assert_same_bits(*found)


@PARTS
def test_a_recomputed_part_keeps_only_its_input(part):
    model = build(part)
    layer = model.bert.encoder.layer[0]
    again = layer if part == "layer" else layer.attention
    x = lucid.tensor(np.ones((B * T, CONFIG.hidden_size), np.float32), requires_grad=True)
    origin = again(x, Sequences.padded(np.empty((B, T)), None)).origin
    assert {id(leaf) for leaf in origin.origins} == {id(x), *(id(leaf) for leaf in again.parameters())}


@pytest.mark.parametrize("exact", [None, 2], ids=["fast", "exact"])
@PARTS
def test_the_sums_over_ranks_are_the_same_with_recomputation(part, exact, group):
    if exact and group.size & (group.size - 1):
        pytest.skip("the exact reduction is for 1, 2, 4, 8, ... ranks")
    found = []
    for what in ("none", part):
        model = build(what).to(group.device)
        ddp = DistributedDataParallel(model, group, bucket_megabytes=0.01, exact_micro_batches=exact)
        for step in range(2):
            ddp.zero_grad()
            for last in (False, True):
                samples = np.arange(B) + B * group.rank
                with nullcontext() if last else ddp.accumulate(), random.at(random.Coordinates.of(0, step, samples)):
                    ddp.module.get_loss(**batch(group.rank + 10 * last), reduction="sum").backward()
        found.append(gradients(ddp.module))
    assert_same_bits(*found)
