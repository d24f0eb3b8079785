"""Several sequences in a row give the losses and gradients that they give in a row each."""

import numpy as np
import pytest
from tiny_bert import CONFIG, IGNORED, B, T, V

import lucid
from lucid.kernels.sequences import Sequences
from lucid.models import BERTForPreTraining

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


def losses_and_gradients(model, batch):
    mlm, nsp = model.branch_losses(**batch)
    (mlm.loss + nsp.loss).backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return {"mlm": mlm.loss.numpy(), "nsp": nsp.loss.numpy(), **gradients}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-13)])
def test_losses_and_gradients_are_those_of_the_sequences_in_a_row_each(dtype, tolerance, apart, packed):
    expected = losses_and_gradients(model_of(dtype), apart)
    for name, value in losses_and_gradients(model_of(dtype), packed).items():
        scale = max(0.1, np.abs(expected[name]).max())
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=tolerance * scale, err_msg=name)


def test_a_sequence_in_a_row_of_its_own_is_that_of_an_attention_mask(apart):
    numbered, masked = model_of(np.float32), model_of(np.float32)
    by_mask = {**apart, "attention_mask": apart["sequence_ids"]}
    del by_mask["sequence_ids"]
    found, expected = losses_and_gradients(numbered, apart), losses_and_gradients(masked, by_mask)
    for name, value in expected.items():
        assert (found[name] == value).all(), name


def test_nothing_of_a_sequence_reaches_the_others_in_its_row(packed):
    model = model_of(np.float32)
    second = packed["sequence_ids"] == 2
    packed["mlm_labels"][second] = IGNORED
    # The rows' second sequences have no labels.
    packed["nsp_labels"] = np.where([False, True, False, True, False, False], IGNORED, packed["nsp_labels"])
    before = [branch.loss.item() for branch in model.branch_losses(**packed)]
    packed["input_ids"][second] = V - 1
    packed["token_type_ids"][second] = 1
    assert [branch.loss.item() for branch in model.branch_losses(**packed)] == before


def test_positions_restart_with_each_sequence(packed):
    model = model_of(np.float32)
    positions = [[0, 1, 2, *range(9)], [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 0], range(12)]
    expected = [branch.loss.item() for branch in model.branch_losses(**packed)]
    given = model.branch_losses(**packed, position_ids=np.array([list(row) for row in positions]))
    assert [branch.loss.item() for branch in given] == expected


def test_the_rows_of_packed_sequences_are_their_slots():
    sequences = Sequences.packed(np.array([[1, 1, 2, 0], [1, 2, 2, 3], [0, 1, 0, 0]]))
    assert sequences.bounds == (0, 2, 3, 4, 6, 7, 8)
    assert sequences.slots.tolist() == [0, 1, 2, 4, 5, 6, 7, 9]
    assert sequences.mask is None


@pytest.mark.parametrize("row", [[1, 2, 1], [2, 2, 2], [1, 3, 3], [1, 0, 1], [0, 0, 0], [2, 1, 0]])
def test_numbers_that_are_no_sequences_side_by_side_are_refused(row):
    ids = np.ones((B, 3), int)
    with pytest.raises(ValueError, match="sequence_ids takes 1"):
        model_of(np.float32).branch_losses(
            ids, np.zeros(B, int), ids, sequence_ids=np.array([[1, 1, 2], [0, 1, 1], [1, 2, 3], row])
        )


def test_a_mask_beside_the_numbers_is_refused(packed):
    with pytest.raises(ValueError, match="not both"):
        model_of(np.float32).branch_losses(**packed, attention_mask=packed["sequence_ids"] > 0)
