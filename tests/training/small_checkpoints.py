"""A tiny model with moments, and snapshots of it."""

from dataclasses import replace

import numpy as np

from lucid.models import BERTConfig, BERTForPreTraining
from lucid.nn import flatten
from lucid.optim import AdamW, OneProcess
from lucid.training.checkpoints.checkpoint import Snapshot, TrainingState

CONFIG = BERTConfig(
    vocab_size=20,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=8,
)
STATE = TrainingState(
    step=1,
    samples_consumed=8,
    optimizer_updates=1,
    skipped_steps=0,
    skipped_in_a_row=0,
    window=(0.0,) * 6,
    corpus="abc",
    tokenizer="def",
    numerics={"blas": "one"},
    config={"train": {"seed": 0}},
)


def trained_model(config=CONFIG):
    """Return a model and an optimizer with moments."""
    model = BERTForPreTraining(config)
    optimizer = AdamW(OneProcess(flatten(model)))
    generator = np.random.default_rng(0)
    optimizer.flat.gradients[:] = generator.standard_normal(len(optimizer.flat.gradients))
    optimizer.step(1e-3)
    return model, optimizer


def snapshot(trained, step=1, config=CONFIG, best=None):
    """Return a snapshot for `write_checkpoint`."""
    model, optimizer = trained
    state = replace(STATE, step=step, best=best)
    return Snapshot(state, config, model.state_dict(), optimizer.moments(), tokenizer_files={})
