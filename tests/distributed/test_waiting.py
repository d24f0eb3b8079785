"""How a rank waits for others: it leaves them the processor, unless something large is on its way."""

import pytest

from lucid.distributed.communicators import mpi


class Request:
    """An MPI request that is over when it has been tested so often, or waited for."""

    def __init__(self, tests):
        self.tests, self.waits = tests, 0

    def Test(self):  # noqa: N802
        self.tests -= 1
        return self.tests < 0

    def Wait(self):  # noqa: N802
        self.waits += 1


@pytest.fixture
def sleeps(monkeypatch):
    """A list that grows with each time that this process would sleep."""
    durations = []
    monkeypatch.setattr(mpi.time, "sleep", durations.append)
    return durations


def test_what_comes_in_a_moment_is_not_slept_for(sleeps):
    mpi._wait_for(Request(tests=100), size=8)
    assert not sleeps


def test_who_waits_long_for_little_sleeps_between_looks(sleeps):
    request = Request(tests=5000)
    mpi._wait_for(request, size=8)
    assert len(sleeps) == 4000
    assert not request.waits


def test_what_is_large_is_left_to_mpi_which_moves_it_while_it_waits(sleeps):
    request = Request(tests=5000)
    mpi._wait_for(request, size=10**6)
    assert request.waits == 1
    assert not sleeps
