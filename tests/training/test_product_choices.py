"""The algorithms of a run's products: those of the first rank, or of the run that it goes on with, on all ranks."""

import json
from dataclasses import asdict

import pytest

from lucid.distributed import connect
from lucid.files import parse_dataclass
from lucid.kernels.cuda import algorithms, plans
from lucid.training.products import ProductChoices, choices_so_far, merged, take_first_ranks_choices


def test_what_all_ranks_chose_is_recorded_once_and_what_differs_by_rank():
    choices = merged("card", [{"a": 0}, {"a": 0, "b": 1}, {"a": 2, "b": 1, "c": 3}])
    assert choices == ProductChoices("card", {"a": 0, "b": 1, "c": 3}, {"2": {"a": 2}})
    assert [choices.of(rank)["a"] for rank in range(4)] == [0, 0, 2, 0]


def test_it_comes_back_from_a_checkpoints_text():
    choices = ProductChoices("card", {"a": 0}, {"2": {"a": 2}})
    assert parse_dataclass(ProductChoices, json.dumps(asdict(choices)).encode()) == choices


@pytest.fixture
def process(monkeypatch, tmp_path):
    """A process that has chosen nothing, on a machine that has kept nothing."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(algorithms, "_known", {})
    monkeypatch.setattr(algorithms, "_used", {})
    return plans.card_of("cuda:0")


def never():
    raise AssertionError("this was chosen before")


@pytest.mark.emulated
def test_what_the_run_had_before_counts_more_than_what_the_machine_has_kept(process):
    algorithms.chosen(process, "a", lambda: {0: 2.0, 1: 1.0})
    algorithms.chosen(process, "b", lambda: {0: 2.0, 1: 1.0})
    communicator = connect("single", "cuda")
    take_first_ranks_choices(communicator, ProductChoices(process, {"a": 0}))
    assert [algorithms.chosen(process, product, never) for product in "ab"] == [0, 1]
    assert choices_so_far(communicator) == ProductChoices(process, {"a": 0, "b": 1})


@pytest.mark.emulated
def test_what_the_run_had_on_another_kind_of_card_does_not_count(process):
    take_first_ranks_choices(connect("single", "cuda"), ProductChoices("another", {"a": 0}))
    assert algorithms.chosen(process, "a", lambda: {0: 2.0, 1: 1.0}) == 1


@pytest.mark.emulated
@pytest.mark.mpi(min_size=2)
def test_all_ranks_take_the_first_ones_and_record_their_own(process, staged):
    """Each on a machine of its own."""
    rank = staged.rank
    algorithms.chosen(process, "a", lambda: {rank: 1.0})
    take_first_ranks_choices(staged, None)
    assert algorithms.chosen(process, "a", never) == 0
    assert algorithms.chosen(process, "b", lambda: {rank: 1.0}) == rank
    recorded = choices_so_far(staged)
    assert recorded.of_all == {"a": 0, "b": 0}
    take_first_ranks_choices(staged, recorded if rank == 0 else None)
    assert [algorithms.chosen(process, product, never) for product in "ab"] == [0, rank]
