"""The order of an epoch visits every item once, and differs between epochs and seeds."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lucid.data.permutation import Permutation


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**32 - 1))
def test_every_item_has_one_position(size: int, seed: int, epoch: int) -> None:
    assert (np.sort(Permutation(size, seed, epoch).at(np.arange(size))) == np.arange(size)).all()


@given(size=st.integers(1, 2**40), positions=st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_positions_of_huge_epochs_are_computed_one_by_one(size: int, positions: list[int]) -> None:
    permutation = Permutation(size, seed=7, epoch=3)
    wanted = np.asarray(positions) % size
    together = permutation.at(wanted)
    assert ((together >= 0) & (together < size)).all()
    assert [int(permutation.at(wanted[i : i + 1])[0]) for i in range(len(wanted))] == together.tolist()
    assert len(set(together.tolist())) == len(set(wanted.tolist()))


def test_each_epoch_and_each_seed_has_its_own_order() -> None:
    orders = [Permutation(1000, seed, epoch).at(np.arange(1000)) for seed in (0, 1) for epoch in (0, 1)]
    for i, order in enumerate(orders):
        for other in [*orders[:i], np.arange(1000)]:
            assert (order == other).sum() < 15


def test_all_orders_of_three_items_are_about_equally_frequent() -> None:
    orders = [tuple(Permutation(3, 1, epoch).at(np.arange(3)).tolist()) for epoch in range(3000)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert min(counts) > 350


def test_neighbours_are_scattered() -> None:
    order = Permutation(10_000, 5, 0).at(np.arange(10_000))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.abs(np.diff(order)).mean() / (10_000 / 3) - 1) < 0.05


@given(size=st.integers(1, 2**40), positions=st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_the_place_of_an_item_is_where_the_order_visits_it(size: int, positions: list[int]) -> None:
    permutation, wanted = Permutation(size, seed=7, epoch=3), np.asarray(positions) % size
    assert permutation.places(permutation.at(wanted)).tolist() == wanted.tolist()
    assert permutation.at(permutation.places(wanted)).tolist() == wanted.tolist()
