"""Sequences that share a grid row have the losses and gradients that they have in a row of their own."""

import numpy as np
import pytest
from tiny_bert import CONFIG, IGNORED, T, V

import lucid
from lucid.kernels.sequences import Sequences
from lucid.models import BERTForPreTraining
from lucid.models.bert.token_rows import LabelledRows

LENGTHS = (3, 9, 5, 4, 2, 12)
# Where each of them is: its row, and its first column.
PLACES = ((0, 0), (0, 3), (1, 0), (1, 5), (1, 9), (2, 0))
GRIDS = "input_ids", "token_type_ids", "mlm_labels"


@pytest.fixture
def apart():
    """The sequences in a row each."""
    generator = np.random.default_rng(1)
    shape = len(LENGTHS), T
    used = np.arange(T) < np.array(LENGTHS)[:, None]
    ids = generator.integers(1, V, shape) * used
    return {
        "input_ids": ids,
        "token_type_ids": generator.integers(0, 2, shape) * used,
        "mlm_labels": np.where(used & (generator.random(shape) < 0.4), ids, IGNORED),
        "nsp_labels": generator.integers(0, 2, len(LENGTHS)),
        "sequence_ids": used.astype(int),
    }


@pytest.fixture
def packed(apart):
    """The same sequences in half as many rows."""
    batch = {name: np.full((3, T), IGNORED if name == "mlm_labels" else 0) for name in (*GRIDS, "sequence_ids")}
    for sequence, (length, (row, column)) in enumerate(zip(LENGTHS, PLACES, strict=True)):
        slots = slice(column, column + length)
        for name in GRIDS:
            batch[name][row, slots] = apart[name][sequence, :length]
        batch["sequence_ids"][row, slots] = 1 + batch["sequence_ids"][row].max()
    return {**batch, "nsp_labels": apart["nsp_labels"]}


def model_of(dtype):
    lucid.manual_seed(0)
    return BERTForPreTraining(CONFIG).to(dtype).eval()


def losses(model, batch):
    return [head.loss.item() for head in model.losses(LabelledRows.packed(**batch))]


def loss_and_gradients(model, batch):
    mlm, nsp = model.losses(LabelledRows.packed(**batch))
    return with_gradients(model, mlm.loss + nsp.loss)


def with_gradients(model, loss):
    loss.backward()
    return {"loss": loss.numpy()} | {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-13)])
def test_losses_and_gradients_equal_those_of_one_sequence_in_each_row(dtype, tolerance, apart, packed):
    expected = loss_and_gradients(model_of(dtype), apart)
    for name, value in loss_and_gradients(model_of(dtype), packed).items():
        scale = max(0.1, np.abs(expected[name]).max())
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=tolerance * scale, err_msg=name)


def test_one_sequence_in_each_row_is_computed_as_with_an_attention_mask(apart):
    masked = model_of(np.float32)
    by_mask = {**apart, "attention_mask": apart["sequence_ids"]}
    del by_mask["sequence_ids"]
    found = loss_and_gradients(model_of(np.float32), apart)
    expected = with_gradients(masked, masked.get_loss(**by_mask, reduction="sum"))
    for name, value in expected.items():
        assert (found[name] == value).all(), name


def test_a_sequence_has_no_influence_on_the_others_in_its_row(packed):
    model = model_of(np.float32)
    second = packed["sequence_ids"] == 2
    packed["mlm_labels"][second] = IGNORED
    # The rows' second sequences have no labels.
    packed["nsp_labels"] = np.where([False, True, False, True, False, False], IGNORED, packed["nsp_labels"])
    before = losses(model, packed)
    packed["input_ids"][second] = V - 1
    packed["token_type_ids"][second] = 1
    assert losses(model, packed) == before


def test_positions_restart_with_each_sequence(packed):
    positions = LabelledRows.packed(**packed).position_ids
    assert positions.tolist() == [position for length in LENGTHS for position in range(length)]


def test_the_token_rows_of_packed_sequences_are_their_slots():
    sequences = Sequences.packed(np.array([[1, 1, 2, 0], [1, 2, 2, 3], [0, 1, 0, 0]]))
    assert sequences.bounds == (0, 2, 3, 4, 6, 7, 8)
    assert sequences.slots.tolist() == [0, 1, 2, 4, 5, 6, 7, 9]
    assert sequences.mask is None
