"""The order in which ranks carry out operations on memory that they share, without a message for each.

An operation is some work that is divided: every rank does its own share of it, in the memory of all. All ranks issue
the same operations in the same order, so a rank that counts its own knows the number of everybody's. Each rank tells
two numbers, which only rise, and which only it writes:

- *ready* k: "I have issued operation k: from now on the others may read and write my arrays of it";
- *done* k: "I have done my share of operation k, and of all before it".

A rank does its share of k when all are ready for k, and gives its arrays back to the caller when all are done with k.

Why a fast rank never touches what a slow one still needs:

- Before it reads or writes a peer's array for k, that peer was ready for k, and `Work.wait` has not returned there:
  it waits for our share too. So the peer's array holds what the peer had put there, and stays the operations'.
- Within one operation, shares do not touch the same elements of the same array, but for elements that nobody writes.
- Of two operations on one array, the caller issues the second after the first has returned. That was when all were
  done with it; so nobody does anything for the first any more, and nobody begins the second before the slowest rank
  is ready for it. Numbers only rise, so no signal is ever taken for one of an earlier operation.

Why it ends: shares are done in `complete`, in the caller's thread. Let all ranks complete operations in the same order.
Of the ranks in `complete`, look at the one that waits for the lowest number k. Those that are further have done their
shares of k; those that wait for k, too, do theirs as soon as the last is there and ready; nobody else is missing.

Numbers are aligned words of 8 bytes, which processors read and write whole. `fence` orders them against the data: it
stands after the data and before the number where a rank tells, and after the number and before the data where it reads.
Processors that reorder memory accesses (ARM, POWER) need that, and a compiler may too.
"""

from collections import deque
from collections.abc import Callable, Sequence

from lucid.backend import Array

# Each number has two cache lines of its own: processors like to fetch them in pairs.
NUMBERS, READY, DONE = 32, 0, 16


class Lockstep:
    """The operations of one rank."""

    def __init__(
        self, rank: int, signals: Sequence[Array], fence: Callable[[], None], idle: Callable[[int], None]
    ) -> None:
        """`signals` are the numbers of all ranks, int64 [NUMBERS] each, in shared memory, and zero.

        `idle` is called again and again while others are not there yet, with how often it has been called before.
        """
        self._ready = [numbers[READY : READY + 1] for numbers in signals]
        self._done = [numbers[DONE : DONE + 1] for numbers in signals]
        self._rank, self._fence, self._idle = rank, fence, idle
        self._issued = 0
        self._pending: deque[tuple[int, Callable[[], None]]] = deque()

    def issue(self, share: Callable[[], None]) -> int:
        """Give this rank's arrays away, to the next operation; `share` does this rank's part. Return its number."""
        self._issued += 1
        self._pending.append((self._issued, share))
        self._tell(self._ready, self._issued)
        return self._issued

    def complete(self, number: int) -> None:
        """Do this rank's shares of all operations up to `number`, and block until all ranks have."""
        while self._pending and self._pending[0][0] <= number:
            oldest, share = self._pending.popleft()
            self._wait_for_all(self._ready, oldest)
            share()
            self._tell(self._done, oldest)
        self._wait_for_all(self._done, number)

    def _tell(self, numbers: list[Array], number: int) -> None:
        self._fence()
        numbers[self._rank][0] = number

    def _wait_for_all(self, numbers: list[Array], number: int) -> None:
        for of_rank in numbers:
            attempts = 0
            while of_rank[0] < number:
                self._idle(attempts)
                attempts += 1
        self._fence()
