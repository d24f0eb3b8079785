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

A share may have to wait for messages from other nodes. So it is an iterable, of which each step does what can be done
now, and `advance` takes a step of each share that is under way: a few at once, so that messages of one travel while
another is added up. Shares begin and end in order.

Why it ends: let somebody call `advance` while shares are to be done, and look at the lowest number k of which a rank's
share is not over. All ranks have issued k, or will: nobody waits for k before it has issued it. So all are ready, and
each share of k begins, as those before it are over; its messages are among shares of k, so they are answered.

Numbers are aligned words of 8 bytes, which processors read and write whole. `fence` orders them against the data: it
stands after the data and before the number where a rank tells, and after the number and before the data where it reads.
Processors that reorder memory accesses (ARM, POWER) need that, and a compiler may too.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from lucid.backend import Array

# Each number has two cache lines of its own: processors like to fetch them in pairs.
NUMBERS, READY, DONE = 32, 0, 16


# Shares under way together; each holds messages of the size of its array.
_AT_ONCE = 2


@dataclass
class _Share:
    """A rank's part of operation `number`: what is left of it."""

    number: int
    steps: Iterator[None]
    over: bool = False


class Lockstep:
    """The operations of one rank. Two threads may carry them on."""

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
        self._pending: deque[tuple[int, Callable[[], Iterable[None]]]] = deque()
        self._under_way: deque[_Share] = deque()
        self._advancing = threading.Lock()
        self._failure: BaseException | None = None

    def issue(self, share: Callable[[], Iterable[None]]) -> int:
        """Give this rank's arrays away, to the next operation; `share` does this rank's part. Return its number."""
        self._issued += 1
        self._pending.append((self._issued, share))
        self._tell(self._ready, self._issued)
        return self._issued

    def complete(self, number: int) -> None:
        """Do this rank's shares, and block until all ranks have done theirs of operation `number`.

        Raises what a share of this rank has raised, whichever thread did it.
        """
        attempts = 0
        while not self._all_tell(self._done, number):
            attempts = 0 if self.advance() else attempts + 1
            if attempts:
                self._idle(attempts - 1)
        self._fence()

    def advance(self) -> bool:
        """Do what can be done now of this rank's shares; return whether one has begun or ended. Does not wait."""
        with self._advancing:
            if self._failure is not None:
                raise self._failure
            try:
                return self._advance()
            except BaseException as failure:
                self._failure = failure
                raise

    def has_shares(self) -> bool:
        """Return whether this rank has shares to do."""
        return bool(self._pending or self._under_way)

    def _advance(self) -> bool:
        moved = False
        if self._pending and len(self._under_way) < _AT_ONCE and self._all_tell(self._ready, self._pending[0][0]):
            self._fence()
            number, share = self._pending[0]
            self._under_way.append(_Share(number, iter(share())))
            self._pending.popleft()  # only now: `has_shares` looks at both, from another thread
            moved = True
        for share_under_way in self._under_way:
            share_under_way.over = share_under_way.over or next(share_under_way.steps, self) is self
        while self._under_way and self._under_way[0].over:
            self._tell(self._done, self._under_way.popleft().number)
            moved = True
        return moved

    def _tell(self, numbers: list[Array], number: int) -> None:
        self._fence()
        numbers[self._rank][0] = number

    def _all_tell(self, numbers: list[Array], number: int) -> bool:
        return all(of_rank[0] >= number for of_rank in numbers)
