"""The order in which ranks carry out operations on memory that they share, without messages.

An operation consists of one task for each rank, which works in the memory of all ranks. All ranks issue the same
operations in the same order, so they agree on the operations' numbers by counting. Each rank publishes two numbers.
They only rise, and only that rank writes them:

- *ready* k: "I have issued operation k: from now on the others may read and write my arrays of it";
- *done* k: "I have done my task of operation k, and of all operations before it".

A rank does its task of k when all are ready for k, and returns its arrays to the caller when all are done with k.

Why a fast rank never touches data that a slow rank still needs:

- When it reads or writes a peer's array for k, the peer is ready for k, and `Work.wait` has not returned there, because
  that waits for our task too. So the array holds the peer's input, and the peer's caller does not touch it.
- Within one operation, no two tasks touch the same element of an array, except elements that no task writes.
- Of two operations on one array, the caller issues the second after the first has returned, when all were done with
  the first. So no rank still works on the first, and none begins the second before the slowest rank is ready for it.
  Numbers only rise, so no rank mistakes an earlier operation's signal for a later one's.

A task may have to wait for messages from other nodes. So it is an iterable, each step of which does what is possible
now. `advance` takes one step of each task under way. Several are under way at once, so that the messages of one travel
while another adds. Tasks begin and end in order.

Why all tasks end: suppose that each rank calls `advance` while it has tasks, and let k be the lowest number of which
some task has not ended. All ranks have issued k, or will, because no rank waits for k before it issues k. So all become
ready, and each task of k begins, because those before it have ended. Its messages go to tasks of k, which answer them.

Numbers are aligned words of 8 bytes, which processors read and write whole. `fence` orders them against the data: a
rank that publishes a number calls it after the data and before the number; a rank that reads calls it after the number
and before the data. Processors that reorder memory accesses (ARM, POWER) need this, and so may a compiler.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from lucid.backend import Array

# Each number has two cache lines to itself, because processors often fetch lines in pairs.
NUMBERS, READY, DONE = 32, 0, 16

# Tasks under way at once; each holds messages of the size of its array.
_AT_ONCE = 2


@dataclass
class _Task:
    """A rank's task of operation `number`, with the steps that are left."""

    number: int
    steps: Iterator[None]
    ended: bool = False


class Lockstep:
    """The operations of one rank. Two threads may advance them."""

    def __init__(
        self, rank: int, signals: Sequence[Array], fence: Callable[[], None], idle: Callable[[int], None]
    ) -> None:
        """Take the numbers of all ranks: `signals` has int64 [NUMBERS] for each, zeros in shared memory.

        While this rank waits for others, it calls `idle` repeatedly, with the number of calls before.
        """
        self._ready = [numbers[READY : READY + 1] for numbers in signals]
        self._done = [numbers[DONE : DONE + 1] for numbers in signals]
        self._rank, self._fence, self._idle = rank, fence, idle
        self._issued = 0
        self._pending: deque[tuple[int, Callable[[], Iterable[None]]]] = deque()
        self._under_way: deque[_Task] = deque()
        self._advancing = threading.Lock()
        self._failure: BaseException | None = None

    def issue(self, task: Callable[[], Iterable[None]]) -> int:
        """Give this rank's arrays to the next operation, for which this rank does `task`. Return its number."""
        self._issued += 1
        self._pending.append((self._issued, task))
        self._publish(self._ready, self._issued)
        return self._issued

    def complete(self, number: int) -> None:
        """Do this rank's tasks, and block until all ranks are done with operation `number`.

        Raises the error of a task of this rank, whichever thread ran it.
        """
        attempts = 0
        while not self._all_reached(self._done, number):
            attempts = 0 if self.advance() else attempts + 1
            if attempts:
                self._idle(attempts - 1)
        self._fence()

    def advance(self) -> bool:
        """Take the steps of this rank's tasks that are possible now; return whether a task has begun or ended."""
        with self._advancing:
            if self._failure is not None:
                raise self._failure
            try:
                return self._advance()
            except BaseException as failure:
                self._failure = failure
                raise

    def has_tasks(self) -> bool:
        """Return whether this rank has tasks to do."""
        return bool(self._pending or self._under_way)

    def _advance(self) -> bool:
        moved = False
        if self._pending and len(self._under_way) < _AT_ONCE and self._all_reached(self._ready, self._pending[0][0]):
            self._fence()
            number, task = self._pending[0]
            self._under_way.append(_Task(number, iter(task())))
            self._pending.popleft()  # only now: another thread's `has_tasks` looks at both
            moved = True
        for under_way in self._under_way:
            under_way.ended = under_way.ended or next(under_way.steps, self) is self
        while self._under_way and self._under_way[0].ended:
            self._publish(self._done, self._under_way.popleft().number)
            moved = True
        return moved

    def _publish(self, numbers: list[Array], number: int) -> None:
        self._fence()
        numbers[self._rank][0] = number

    def _all_reached(self, numbers: list[Array], number: int) -> bool:
        return all(ranks_number[0] >= number for ranks_number in numbers)
