"""Which tokens are masked, by what, and how often."""

import numpy as np
import pytest

from lucid.backend import Array
from lucid.kernels.masking import Masking, mask_tokens
from lucid.random import Coordinates

MASK, VOCABULARY = 4, 1000
MASKING = Masking(mask_token_id=MASK, vocab_size=VOCABULARY, max_predictions=20)


def masked(
    rows: int = 2000, length: int = 128, masking: Masking = MASKING, seed: int = 1
) -> tuple[Array, Array, Array, Array]:
    """Return (ids, candidates, masked ids, labels) of sequences whose every fifth token may not be masked."""
    ids = np.random.default_rng(0).integers(5, VOCABULARY, (rows, length)).astype(np.int32)
    candidates = np.arange(length) % 5 > 0
    candidates = np.broadcast_to(candidates, ids.shape)
    lengths = np.full(rows, length)
    return ids, candidates, *mask_tokens(ids, candidates, lengths, masking, Coordinates(seed, 0, np.arange(rows)))


def test_a_share_of_the_length_is_chosen_among_the_candidates() -> None:
    ids, candidates, masked_ids, labels = masked()
    chosen = labels != -100
    assert (chosen.sum(axis=1) == round(0.15 * 128)).all()
    assert not (chosen & ~candidates).any()
    assert (labels[chosen] == ids[chosen]).all()
    assert (masked_ids[~chosen] == ids[~chosen]).all()


def test_what_is_chosen_becomes_the_mask_a_random_token_or_stays() -> None:
    ids, _, masked_ids, labels = masked()
    chosen = labels != -100
    assert abs((masked_ids[chosen] == MASK).mean() - 0.8) < 0.01
    assert abs((masked_ids[chosen] == ids[chosen]).mean() - 0.1) < 0.01
    random_ids = masked_ids[chosen & (masked_ids != MASK) & (masked_ids != ids)]
    assert (random_ids.min(), random_ids.max()) < (5, VOCABULARY)
    assert abs(random_ids.mean() / VOCABULARY - 0.5) < 0.02


def test_every_candidate_is_chosen_equally_often() -> None:
    _, candidates, _, labels = masked(rows=10_000, length=20)
    shares = (labels != -100).mean(axis=0)[candidates[0]]
    assert np.abs(shares - 3 / 16).max() < 0.02


@pytest.mark.parametrize(("length", "count"), [(1, 1), (3, 1), (10, 2), (20, 3), (128, 5)])
def test_the_number_is_rounded_at_least_one_and_bounded(length: int, count: int) -> None:
    masking = Masking(mask_token_id=MASK, vocab_size=VOCABULARY, max_predictions=5)
    ids, candidates = np.full((3, 128), 9), np.ones((3, 128), dtype=bool)
    coordinates = Coordinates(1, 0, np.arange(3))
    _, labels = mask_tokens(ids, candidates, np.full(3, length), masking, coordinates)
    assert ((labels != -100).sum(axis=1) == count).all()


def test_no_more_is_chosen_than_there_are_candidates() -> None:
    candidates = np.zeros((2, 64), dtype=bool)
    candidates[0, 7] = True
    _, labels = mask_tokens(np.full((2, 64), 9), candidates, np.full(2, 64), MASKING, Coordinates(1, 0, np.arange(2)))
    assert np.argwhere(labels != -100).tolist() == [[0, 7]]


def test_shares_and_the_ignored_label_can_be_set() -> None:
    masking = Masking(
        MASK, VOCABULARY, 128, probability=0.5, replace_probability=0, random_probability=0, ignore_index=-1
    )
    ids, _, masked_ids, labels = masked(masking=masking)
    assert (masked_ids == ids).all()
    assert ((labels != -1).sum(axis=1) == 64).all()
    assert labels.min() == -1


def test_each_row_depends_on_its_coordinates_only() -> None:
    ids, candidates, masked_ids, labels = masked(rows=16)
    rows = np.asarray([11, 2])
    part = mask_tokens(ids[rows], candidates[rows], np.full(2, 128), MASKING, Coordinates(1, 0, rows))
    assert (part[0] == masked_ids[rows]).all()
    assert (part[1] == labels[rows]).all()
    assert (masked(rows=16, seed=2)[3] != labels).any()


def test_the_input_is_left_as_it_was_and_its_type_is_kept() -> None:
    for dtype in (np.int32, np.int64):
        ids = np.full((2, 16), 9, dtype=dtype)
        masked_ids, labels = mask_tokens(
            ids, np.ones((2, 16), dtype=bool), np.full(2, 16), MASKING, Coordinates(1, 0, np.arange(2))
        )
        assert (ids == 9).all()
        assert (masked_ids.dtype, labels.dtype) == (dtype, dtype)
