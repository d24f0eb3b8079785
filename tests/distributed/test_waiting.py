"""How a rank waits for others: it leaves them the processor, unless it waits for a large message."""

import pytest

from lucid.distributed.communicators import mpi


class Request:
    """An MPI request that completes after a number of tests, or when it is waited for."""

    def __init__(self, tests):
        self.tests, self.waits = tests, 0

    def Test(self):  # noqa: N802
        self.tests -= 1
        return self.tests < 0

    def Wait(self):  # noqa: N802
        self.waits += 1


@pytest.fixture
def sleeps(monkeypatch):
    """A list that grows each time that this process would sleep."""
    durations = []
    monkeypatch.setattr(mpi.time, "sleep", durations.append)
    return durations


def test_a_short_wait_does_not_sleep(sleeps):
    mpi._wait_for(Request(tests=100), size=8)
    assert not sleeps


def test_a_long_wait_for_a_small_message_sleeps_between_tests(sleeps):
    request = Request(tests=5000)
    mpi._wait_for(request, size=8)
    assert len(sleeps) == 4000
    assert not request.waits


def test_mpi_waits_for_a_large_message_and_moves_it_meanwhile(sleeps):
    request = Request(tests=5000)
    mpi._wait_for(request, size=10**6)
    assert request.waits == 1
    assert not sleeps
