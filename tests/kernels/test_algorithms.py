"""A choice among algorithms is made once on a kind of card: what is in the file counts, whoever wrote it first."""

import subprocess
import sys

import pytest

from lucid.kernels.cuda import algorithms

CARD, PRODUCT = "Some GPU, sm_90", "TN DEFAULT at 0: 2 x 3"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A machine that has kept nothing, and a process that knows nothing."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    forget(monkeypatch)
    return tmp_path


@pytest.fixture
def kept(folder):
    """The file of choices, of which there is one."""

    def found():
        [path] = folder.glob("products/*.jsonl")
        return path

    return found


def forget(monkeypatch):
    """Be a new process."""
    monkeypatch.setattr(algorithms, "_known", {})
    monkeypatch.setattr(algorithms, "_used", {})


def times(*seconds):
    return lambda: dict(enumerate(seconds))


def no_times():
    raise AssertionError("this product was timed before")


def test_the_fastest_is_chosen_and_kept_for_later_processes(monkeypatch):
    assert algorithms.chosen(CARD, PRODUCT, times(3, 1, 2)) == 1
    forget(monkeypatch)
    assert algorithms.chosen(CARD, PRODUCT, no_times) == 1


def test_one_that_is_hardly_faster_does_not_come_before_an_earlier_one():
    assert algorithms.fastest({0: 1.5, 4: 1.01, 8: 1.0}) == 4


def test_one_that_failed_is_not_chosen():
    assert algorithms.fastest({0: float("inf"), 1: 5.0}) == 1


def test_other_products_and_cards_have_their_own(monkeypatch):
    assert algorithms.chosen(CARD, PRODUCT, times(2, 1)) == 1
    assert algorithms.chosen(CARD, "NT", times(1, 2)) == 0
    assert algorithms.chosen("Other GPU, sm_80", PRODUCT, times(1, 2)) == 0
    forget(monkeypatch)
    assert algorithms.chosen(CARD, PRODUCT, no_times) == 1


def test_without_times_there_is_no_choice_and_nothing_is_kept(folder):
    assert algorithms.chosen(CARD, PRODUCT, None) is None
    assert not list(folder.rglob("*.jsonl"))
    assert algorithms.chosen(CARD, PRODUCT, times(2, 1)) == 1
    assert algorithms.chosen(CARD, PRODUCT, None) == 1


def test_who_times_at_the_same_time_takes_what_the_first_has_written(monkeypatch):
    def while_another_process_is_faster():
        known, used = algorithms._known, algorithms._used
        forget(monkeypatch)
        assert algorithms.chosen(CARD, PRODUCT, times(1, 2)) == 0
        monkeypatch.setattr(algorithms, "_known", known)
        monkeypatch.setattr(algorithms, "_used", used)
        return {0: 2.0, 1: 1.0}

    assert algorithms.chosen(CARD, PRODUCT, while_another_process_is_faster) == 0


def test_processes_that_write_at_once_agree(folder):
    program = f"""
from lucid.kernels.cuda import algorithms
for product in range(50):
    print(algorithms.chosen({CARD!r}, str(product), lambda: {{0: 1.0, 1: __import__("random").choice((0.5, 2.0))}}))
"""
    command = [sys.executable, "-c", program]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    found = {process.communicate(timeout=60)[0] for process in processes}
    assert len(found) == 1
    assert len(found.pop().split()) == 50


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\x00{", b"[" * 100_000, b'{"product": "TN', b'{"product": 3, "algorithm": 0}', b"[1, 2]", b"null",
        b'{"product": "TN DEFAULT at 0: 2 x 3", "algorithm": true}',
        b'{"product": "TN DEFAULT at 0: 2 x 3", "algorithm": -1}',
    ],
)  # fmt: skip
def test_damaged_lines_are_passed_over(kept, monkeypatch, damage):
    algorithms.chosen(CARD, "NT", times(2, 1))
    with kept().open("ab") as file:
        file.write(damage)
    forget(monkeypatch)
    assert algorithms.chosen(CARD, PRODUCT, times(3, 2, 1)) == 2
    forget(monkeypatch)
    assert algorithms.chosen(CARD, PRODUCT, no_times) == 2
    assert algorithms.chosen(CARD, "NT", no_times) == 1


def test_where_nothing_can_be_kept_nothing_is_timed(monkeypatch):
    """Each process would find other bits."""
    monkeypatch.setattr(algorithms, "cache_folder", lambda name, sources: None)
    assert algorithms.chosen(CARD, PRODUCT, no_times) is None


def test_a_choice_that_could_not_be_written_does_not_count(monkeypatch):
    def full(file, line):
        raise OSError("no space left on the disk")

    monkeypatch.setattr(algorithms.os, "write", full)
    assert algorithms.chosen(CARD, PRODUCT, times(2, 1)) is None


INFINITY = float("inf")


@pytest.mark.parametrize("seconds", [times(), times(INFINITY, INFINITY)], ids=["no room", "all failed"])
def test_a_choice_that_was_not_measured_holds_in_this_process_alone(folder, monkeypatch, seconds):
    assert algorithms.chosen(CARD, PRODUCT, seconds) is None
    assert algorithms.chosen(CARD, PRODUCT, no_times) is None
    # A run that goes on makes the product as before.
    assert algorithms.used() == {CARD: {PRODUCT: None}}
    assert not list(folder.rglob("*.jsonl"))
    forget(monkeypatch)
    assert algorithms.chosen(CARD, PRODUCT, times(2, 1)) == 1


def test_what_was_recorded_counts_more_than_what_was_given_and_that_more_than_what_was_kept():
    for product in (PRODUCT, "NN", "TT"):
        assert algorithms.chosen(CARD, product, times(3, 1, 2)) == 1
    algorithms.give({CARD: {PRODUCT: 0}}, {CARD: {PRODUCT: 2, "NN": 2}})
    assert [algorithms.chosen(CARD, product, no_times) for product in (PRODUCT, "NN", "TT")] == [0, 2, 1]


def test_what_a_run_has_recorded_stays_recorded_and_what_it_asks_for_comes_to_it():
    algorithms.chosen(CARD, "TT", times(1, 2))
    algorithms.give({CARD: {PRODUCT: 3}, "Other GPU": {PRODUCT: None}}, {CARD: {"NN": 2, "NT": 1}})
    assert algorithms.chosen(CARD, "NN", no_times) == 2
    assert algorithms.used() == {CARD: {PRODUCT: 3, "NN": 2}, "Other GPU": {PRODUCT: None}}
