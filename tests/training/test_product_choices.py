"""The algorithms of a run's products: all ranks take those of the resumed run or of the first rank."""

import json
from dataclasses import asdict

import pytest

from lucid.distributed import connect
from lucid.json_values import parse_dataclass
from lucid.kernels.cuda import algorithms, plans
from lucid.training import product_choices
from lucid.training.product_choices import ProductChoices, choices_so_far, merged, take_first_ranks_choices


def test_common_choices_are_recorded_once_and_different_ones_by_rank():
    told = {"card": {"a": 0}, "other": {"a": 7}}
    choices = merged(told, [{}, {"card": {"b": 1}}, {"card": {"a": 2, "b": None, "c": 3}}, {"other": {"b": 8}}])
    assert choices == ProductChoices(
        {"card": {"a": 0, "b": 1, "c": 3}, "other": {"a": 7, "b": 8}}, {"2": {"card": {"a": 2, "b": None}}}
    )
    assert [choices.of(rank)["card"]["a"] for rank in range(4)] == [0, 0, 2, 0]
    assert choices.of(2) == {"card": {"a": 2, "b": None, "c": 3}, "other": {"a": 7, "b": 8}}


def test_choices_survive_a_checkpoint():
    choices = ProductChoices({"card": {"a": 0, "b": None}}, {"2": {"card": {"a": 2}}})
    assert parse_dataclass(ProductChoices, json.dumps(asdict(choices)).encode()) == choices


@pytest.fixture
def new_process(monkeypatch, tmp_path):
    """A function that makes this process one without choices, on a machine that has stored none."""
    machines = iter(range(100))

    def begin():
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / str(next(machines))))
        monkeypatch.setattr(algorithms, "_known", {})
        monkeypatch.setattr(algorithms, "_used", {})

    return begin


@pytest.fixture
def card(new_process):
    """The GPU model of this machine. Nothing is chosen or stored yet."""
    new_process()
    return plans.card_of("cuda:0")


def never():
    raise AssertionError("this was chosen before")


@pytest.mark.emulated
def test_choices_of_the_run_precede_those_stored_on_the_machine(card):
    for product in "abc":
        algorithms.chosen(card, product, lambda: {0: 2.0, 1: 1.0})
    communicator = connect("single", "cuda")
    take_first_ranks_choices(communicator, ProductChoices({card: {"a": 0}}))
    assert [algorithms.chosen(card, product, never) for product in "ab"] == [0, 1]
    # Nobody has asked for the third.
    assert choices_so_far(communicator) == ProductChoices({card: {"a": 0, "b": 1}})


@pytest.mark.emulated
def test_choices_for_another_gpu_model_are_not_used_but_stay_recorded(card):
    communicator, before = connect("single", "cuda"), {"another": {"a": 0}}
    take_first_ranks_choices(communicator, ProductChoices(before))
    assert algorithms.chosen(card, "a", lambda: {0: 2.0, 1: 1.0}) == 1
    assert choices_so_far(communicator) == ProductChoices(before | {card: {"a": 1}})


@pytest.mark.emulated
def test_a_run_resumed_twice_keeps_choices_that_it_did_not_need_in_between(card, new_process):
    communicator = connect("single", "cuda")
    for product, number in (("a", 3), ("b", None)):
        algorithms.chosen(card, product, lambda number=number: {} if number is None else {number: 1.0})
    first = choices_so_far(communicator)
    new_process()
    take_first_ranks_choices(communicator, first)
    assert algorithms.chosen(card, "b", never) is None
    second = choices_so_far(communicator)
    new_process()
    take_first_ranks_choices(communicator, second)
    assert [algorithms.chosen(card, product, never) for product in "ab"] == [3, None]


@pytest.mark.emulated
@pytest.mark.mpi(min_size=2)
def test_all_ranks_take_the_first_ranks_choices_and_record_their_own(card, staged):
    """Each rank is on its own machine."""
    rank = staged.rank
    algorithms.chosen(card, "a", lambda: {rank: 1.0})
    take_first_ranks_choices(staged, None)
    assert algorithms.chosen(card, "a", never) == 0
    assert algorithms.chosen(card, "b", lambda: {rank: 1.0}) == rank
    recorded = choices_so_far(staged)
    assert recorded.of_all == {card: {"a": 0, "b": 0}}
    take_first_ranks_choices(staged, recorded if rank == 0 else None)
    assert [algorithms.chosen(card, product, never) for product in "ab"] == [0, rank]


@pytest.mark.emulated
@pytest.mark.mpi(min_size=2)
def test_ranks_with_another_gpu_model_have_their_own_choices(card, staged, monkeypatch):
    rank, last = staged.rank, staged.size - 1
    own = "old" if rank == last else "new"
    monkeypatch.setattr(plans, "card_of", lambda device: own)
    # The machine of the first rank has kept this for its own card alone.
    algorithms.chosen("new", "a", lambda: {4: 1.0})
    take_first_ranks_choices(staged, None)
    assert algorithms.chosen(own, "a", lambda: {5: 1.0}) == (5 if rank == last else 4)
    recorded = choices_so_far(staged)
    assert recorded == ProductChoices({"new": {"a": 4}, "old": {"a": 5}})
    take_first_ranks_choices(staged, recorded if rank == 0 else None)
    assert algorithms.chosen(own, "a", never) == (5 if rank == last else 4)


@pytest.mark.emulated
@pytest.mark.mpi(min_size=2)
def test_ranks_send_only_choices_that_the_first_rank_lacks(card, staged, monkeypatch):
    sent, gather_texts = [], product_choices.gather_texts

    def gathered(communicator, text):
        sent.append(text)
        return gather_texts(communicator, text)

    monkeypatch.setattr(product_choices, "gather_texts", gathered)
    for product in range(100):
        algorithms.chosen(card, str(product), lambda: {0: 1.0})
    algorithms.chosen(card, "of this rank", lambda: {staged.rank: 1.0})
    recorded = choices_so_far(staged)
    assert len(recorded.of_all[card]) == 101
    # The card's name, and what differs.
    assert sent == [card, "" if staged.rank == 0 else json.dumps({card: {"of this rank": staged.rank}})]
