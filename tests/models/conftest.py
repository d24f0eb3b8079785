"""A tiny model and a batch for it."""

import numpy as np
import pytest
from tiny_bert import CLS, CONFIG, IGNORED, PAD, SEP, B, T

import lucid
from lucid import models


@pytest.fixture
def model():
    lucid.manual_seed(0)
    return models.BERTForPreTraining(CONFIG).eval()


@pytest.fixture
def arrays():
    """A batch as NumPy arrays: the last sequence is padded."""
    rng = np.random.default_rng(3)
    input_ids = rng.integers(1, 100, (B, T))
    input_ids[:, 0], input_ids[:, 6], input_ids[:, -1] = CLS, SEP, SEP
    attention_mask = np.ones((B, T), np.int64)
    attention_mask[-1, 8:] = 0
    input_ids[-1, 8:] = PAD
    mlm_labels = np.where(rng.random((B, T)) < 0.3, input_ids, IGNORED)
    mlm_labels[attention_mask == 0] = IGNORED
    mlm_labels[:, 3] = input_ids[:, 3]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": (np.arange(T) > 6).astype(np.int64) * attention_mask,
        "mlm_labels": mlm_labels,
        "nsp_labels": np.array([0, 1, 1, 0]),
    }


@pytest.fixture(params=["arrays", "tensors", "int32"])
def batch(request, arrays):
    """The same batch as all the kinds of values that the model takes."""
    kinds = {
        "arrays": lambda array: array,
        "tensors": lucid.tensor,
        "int32": lambda array: array.astype(np.int32),
    }
    return {name: kinds[request.param](array) for name, array in arrays.items()}
