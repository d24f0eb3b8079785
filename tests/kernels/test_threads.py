"""The division of work among threads: nothing works on when it has returned, however it ends."""

import os
import signal
import threading

import numpy as np
import pytest

from lucid.kernels import threads


@pytest.fixture
def interrupts():
    """Ctrl-C raises `KeyboardInterrupt`, whatever runs these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def fail_at_once():
    raise ZeroDivisionError


def go_on():
    """The interrupt comes later, while this thread waits for the others."""


@pytest.mark.parametrize(("own_part", "error"), [(fail_at_once, ZeroDivisionError), (go_on, KeyboardInterrupt)])
def test_after_an_error_or_an_interrupt_no_part_is_worked_on_any_more(monkeypatch, interrupts, own_part, error):
    monkeypatch.setattr(threads, "_limit", 3)
    begun, done, own_part_ends = threading.Barrier(3), [], threading.Event()

    def work(part):
        begun.wait(30)
        if part.start == 0:
            own_part_ends.set()
            own_part()
            return
        own_part_ends.wait(30)
        if part.start == 1 and error is KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGINT)
        for _ in range(50):  # longer than the caller takes to notice
            np.sort(np.arange(30_000)[::-1] % 977)
        done.append(part.start)

    with pytest.raises(error):
        threads.split(3, 1_000_000, work)
    assert sorted(done) == [1, 2]


def test_an_error_of_another_part_is_raised(monkeypatch):
    monkeypatch.setattr(threads, "_limit", 2)

    def work(part):
        if part.start > 0:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads.split(2, 1_000_000, work)
