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
    return ids, candidates, *mask_tokens(ids, candidates, lengths, masking, Coordinates.of(seed, 0, np.arange(rows)))


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
    coordinates = Coordinates.of(1, 0, np.arange(3))
    _, labels = mask_tokens(ids, candidates, np.full(3, length), masking, coordinates)
    assert ((labels != -100).sum(axis=1) == count).all()


def test_no_more_is_chosen_than_there_are_candidates() -> None:
    candidates = np.zeros((2, 64), dtype=bool)
    candidates[0, 7] = True
    _, labels = mask_tokens(
        np.full((2, 64), 9), candidates, np.full(2, 64), MASKING, Coordinates.of(1, 0, np.arange(2))
    )
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
    part = mask_tokens(ids[rows], candidates[rows], np.full(2, 128), MASKING, Coordinates.of(1, 0, rows))
    assert (part[0] == masked_ids[rows]).all()
    assert (part[1] == labels[rows]).all()
    assert (masked(rows=16, seed=2)[3] != labels).any()


def test_the_input_is_left_as_it_was_and_its_type_is_kept() -> None:
    for dtype in (np.int32, np.int64):
        ids = np.full((2, 16), 9, dtype=dtype)
        masked_ids, labels = mask_tokens(
            ids, np.ones((2, 16), dtype=bool), np.full(2, 16), MASKING, Coordinates.of(1, 0, np.arange(2))
        )
        assert (ids == 9).all()
        assert (masked_ids.dtype, labels.dtype) == (dtype, dtype)


def words_of(length: int, rows: int, seed: int = 3) -> tuple[Array, Array]:
    """Return, bool [rows, length]: which tokens may be masked, and which go on with the word before them."""
    draw = np.random.default_rng(seed)
    candidates = draw.random((rows, length)) < 0.9
    return candidates, draw.random((rows, length)) < 0.4


def whole_words(candidates: Array, continues: Array, masking: Masking = MASKING) -> Array:
    """Return bool: which tokens are chosen."""
    rows, length = candidates.shape
    ids, coordinates = np.full(candidates.shape, 9), Coordinates.of(1, 0, np.arange(rows))
    return mask_tokens(ids, candidates, np.full(rows, length), masking, coordinates, continues)[1] != -100


def word_numbers(candidates: Array, continues: Array) -> Array:
    """Return the number of the word of each token within its row; a gap between candidates ends a word."""
    after_a_gap = ~np.pad(candidates, ((0, 0), (1, 0)))[:, :-1]
    return np.cumsum(candidates & (~continues | after_a_gap), axis=1)


def test_words_are_chosen_whole_and_none_is_left_out_that_fits() -> None:
    candidates, continues = words_of(length=40, rows=500)
    chosen, word = whole_words(candidates, continues), word_numbers(candidates, continues)
    assert not (chosen & ~candidates).any()
    for row in range(500):
        sizes, taken = (np.bincount(word[row], which[row], 41).astype(int) for which in (candidates, chosen))
        assert set(taken[taken > 0] - sizes[taken > 0]) <= {0}
        left = round(0.15 * 40) - chosen[row].sum()
        assert left >= 0
        assert (sizes[(taken == 0) & (sizes > 0)] > left).all()


def test_words_of_one_token_are_chosen_as_tokens_are() -> None:
    candidates, _ = words_of(length=64, rows=50)
    one_by_one = np.zeros((50, 64), dtype=bool)
    ids, lengths, coordinates = np.full((50, 64), 9), np.full(50, 64), Coordinates.of(1, 0, np.arange(50))
    expected = mask_tokens(ids, candidates, lengths, MASKING, coordinates)
    found = mask_tokens(ids, candidates, lengths, MASKING, coordinates, one_by_one)
    assert all((one == other).all() for one, other in zip(expected, found, strict=True))


def test_every_word_of_one_size_is_chosen_equally_often() -> None:
    rows, length = 20_000, 24
    continues = np.broadcast_to(np.arange(length) % 2 == 1, (rows, length))
    shares = whole_words(np.ones((rows, length), dtype=bool), continues).mean(axis=0)
    assert np.abs(shares - 2 / 12).max() < 5 * np.sqrt(1 / 6 * 5 / 6 / rows)


def test_a_word_longer_than_the_number_of_predictions_is_passed_over() -> None:
    continues = np.arange(20) >= 1
    assert not whole_words(np.ones((1, 20), dtype=bool), continues[None]).any()
