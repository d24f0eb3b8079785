"""Each kind of card has one choice among algorithms: the first one in the file counts."""

import subprocess
import sys

import pytest

from lucid.kernels.cuda import algorithms

CARD, PRODUCT = "Some GPU, sm_90", "TN DEFAULT at 0: 2 x 3"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A machine without stored choices, and a process without any."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    forget(monkeypatch)
    return tmp_path


@pytest.fixture
def kept(folder):
    """The only file of choices."""

    def found():
        [path] = folder.glob("products/*.jsonl")
        return path

    return found


def forget(monkeypatch):
    """Forget all choices, like a new process."""
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


def test_a_hardly_faster_algorithm_does_not_replace_an_earlier_one():
    assert algorithms.fastest({0: 1.5, 4: 1.01, 8: 1.0}) == 4


def test_a_failed_algorithm_is_not_chosen():
    assert algorithms.fastest({0: float("inf"), 1: 5.0}) == 1


def test_each_product_and_card_has_its_own_choice(monkeypatch):
    assert algorithms.chosen(CARD, PRODUCT, times(2, 1)) == 1
    assert algorithms.chosen(CARD, "NT", times(1, 2)) == 0
    assert algorithms.chosen("Other GPU, sm_80", PRODUCT, times(1, 2)) == 0
    forget(monkeypatch)
    assert algorithms.chosen(CARD, PRODUCT, no_times) == 1


def test_without_times_there_is_no_choice_and_nothing_is_stored(folder):
    assert algorithms.chosen(CARD, PRODUCT, None) is None
    assert not list(folder.rglob("*.jsonl"))
    assert algorithms.chosen(CARD, PRODUCT, times(2, 1)) == 1
    assert algorithms.chosen(CARD, PRODUCT, None) == 1


def test_a_process_that_timed_at_the_same_time_takes_the_first_written_choice(monkeypatch):
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
def test_damaged_lines_are_skipped(kept, monkeypatch, damage):
    algorithms.chosen(CARD, "NT", times(2, 1))
    with kept().open("ab") as file:
        file.write(damage)
    forget(monkeypatch)
    assert algorithms.chosen(CARD, PRODUCT, times(3, 2, 1)) == 2
    forget(monkeypatch)
    assert algorithms.chosen(CARD, PRODUCT, no_times) == 2
    assert algorithms.chosen(CARD, "NT", no_times) == 1


def test_nothing_is_timed_if_nothing_can_be_stored(monkeypatch):
    """Each process would otherwise get other bits."""
    monkeypatch.setattr(algorithms, "cache_folder", lambda name, sources: None)
    assert algorithms.chosen(CARD, PRODUCT, no_times) is None


def test_a_choice_that_could_not_be_written_does_not_count(monkeypatch):
    def full(file, line):
        raise OSError("no space left on the disk")

    monkeypatch.setattr(algorithms.os, "write", full)
    assert algorithms.chosen(CARD, PRODUCT, times(2, 1)) is None


INFINITY = float("inf")


@pytest.mark.parametrize("seconds", [times(), times(INFINITY, INFINITY)], ids=["no room", "all failed"])
def test_a_choice_without_measurement_holds_in_this_process_only(folder, monkeypatch, seconds):
    assert algorithms.chosen(CARD, PRODUCT, seconds) is None
    assert algorithms.chosen(CARD, PRODUCT, no_times) is None
    # A resumed run computes the product as before.
    assert algorithms.used() == {CARD: {PRODUCT: None}}
    assert not list(folder.rglob("*.jsonl"))
    forget(monkeypatch)
    assert algorithms.chosen(CARD, PRODUCT, times(2, 1)) == 1


def test_recorded_choices_precede_given_ones_and_these_precede_stored_ones():
    for product in (PRODUCT, "NN", "TT"):
        assert algorithms.chosen(CARD, product, times(3, 1, 2)) == 1
    algorithms.give({CARD: {PRODUCT: 0}}, {CARD: {PRODUCT: 2, "NN": 2}})
    assert [algorithms.chosen(CARD, product, no_times) for product in (PRODUCT, "NN", "TT")] == [0, 2, 1]


def test_a_run_keeps_its_recorded_choices_and_adds_those_it_uses():
    algorithms.chosen(CARD, "TT", times(1, 2))
    algorithms.give({CARD: {PRODUCT: 3}, "Other GPU": {PRODUCT: None}}, {CARD: {"NN": 2, "NT": 1}})
    assert algorithms.chosen(CARD, "NN", no_times) == 2
    assert algorithms.used() == {CARD: {PRODUCT: 3, "NN": 2}, "Other GPU": {PRODUCT: None}}
