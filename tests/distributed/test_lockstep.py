"""The lockstep of ranks on shared memory, in one process: threads stand for ranks, and a schedule says who runs when.

Ranks may have helpers, further threads that advance their tasks. A thread runs only while it has the turn, and gives
it back at every point where another rank could come in between: before and after each number that is told or read, each
element that is read or written, and while it waits.
"""

import itertools
import random
import threading

import numpy as np
import pytest

from lucid.distributed.communicators.lockstep import NUMBERS, Lockstep

STEPS, ELEMENTS, LONGEST = 3, 4, 100_000
# About how many turns a rank takes in all, and how many the others take at most before they wait for one that stops.
TURNS_OF_A_RANK, LONG_ENOUGH = 90, 100
BUCKETS = [slice(0, 2), slice(2, 4)]


class Turns:
    """Lets one of several threads run at a time until all are done; `choose` picks it from those that are left."""

    def __init__(self, programs, choose):
        self.go = [threading.Semaphore(0) for _ in programs]
        self.back = threading.Semaphore(0)
        self.left = list(range(len(programs)))
        self.errors = []
        self.own = threading.local()
        threads = [threading.Thread(target=self.play, args=item, daemon=True) for item in enumerate(programs)]
        for thread in threads:
            thread.start()
        for _ in range(LONGEST):
            if not self.left:
                break
            self.go[choose(self.left)].release()
            self.back.acquire()
        assert not self.errors, self.errors
        assert not self.left, f"ranks {self.left} wait for ever"

    def play(self, number, program):
        self.own.number = number
        self.go[number].acquire()
        try:
            program(self)
        except Exception as error:
            self.errors.append(error)
        self.left.remove(number)
        self.back.release()

    def give(self, *_):
        """Let other threads run, and continue at the next turn of the calling thread."""
        self.back.release()
        self.go[self.own.number].acquire()


class Taken:
    """A lock whose waiting takes turns."""

    def __init__(self, turns):
        self.turns, self.held = turns, False

    def __enter__(self):
        while self.held:
            self.turns.give()
        self.held = True

    def __exit__(self, *exception):
        self.held = False


class Rank:
    """A rank that sums its row of `memory` over all ranks, bucket by bucket, and overwrites it as soon as possible."""

    def __init__(self, rank, signals, memory):
        self.rank, self.signals, self.memory = rank, signals, memory
        self.lockstep, self.over = None, False

    def run(self, turns):
        self.lockstep = Lockstep(self.rank, self.signals, fence=turns.give, idle=turns.give)
        self.lockstep._advancing = Taken(turns)
        try:
            for step in range(STEPS):
                self.take_step(turns, step)
        finally:
            self.over = True

    def help(self, turns):
        while not self.over:
            turns.give()
            if self.lockstep is not None:
                self.lockstep.advance()

    def take_step(self, turns, step):
        numbers = []
        for bucket in BUCKETS:
            for element in range(bucket.start, bucket.stop):
                self.memory[self.rank, element] = value_of(step, element, self.rank)
                turns.give()
            numbers.append(self.lockstep.issue(lambda bucket=bucket: self.task(turns, bucket)))
        for bucket, number in zip(BUCKETS, numbers, strict=True):
            self.lockstep.complete(number)
            for element in range(bucket.start, bucket.stop):
                turns.give()
                total = sum(value_of(step, element, other) for other in range(len(self.memory)))
                assert self.memory[self.rank, element] == total, f"rank {self.rank}, step {step}, element {element}"
                self.memory[self.rank, element] = -1

    def task(self, turns, bucket):
        # Element by element: each read and each write is a point; between elements other tasks continue.
        for element in range(bucket.start + self.rank, bucket.stop, len(self.memory)):
            total = 0
            for row in self.memory:
                turns.give()
                total += row[element]
            for row in self.memory:
                turns.give()
                row[element] = total
            yield


def value_of(step, element, rank):
    """No sum that mixes steps or elements, or leaves out a rank, is right by chance."""
    return 10 ** (3 * step) * (1 + element) * 7**rank


def play(size, choose, helpers=False):
    signals = list(np.zeros((size, NUMBERS), np.int64))
    memory = np.zeros((size, ELEMENTS), np.int64)
    ranks = [Rank(rank, signals, memory) for rank in range(size)]
    Turns([rank.run for rank in ranks] + [rank.help for rank in ranks if helpers], choose)


def at_random(seed, stays):
    """A schedule in which the same rank continues with probability `stays`."""
    draw, last = random.Random(seed), 0

    def choose(left):
        nonlocal last
        if last not in left or draw.random() >= stays:
            last = draw.choice(left)
        return last

    return choose


def dawdling(dawdler, point):
    """A schedule in which all take turns, but one rank stops at a point until the others wait for it."""
    turns, taken, stopped = itertools.count(), 0, 0

    def choose(left):
        nonlocal taken, stopped
        others = [rank for rank in left if rank != dawdler]
        if taken == point and others and stopped < LONG_ENOUGH:
            stopped += 1
            return others[stopped % len(others)]
        rank = left[next(turns) % len(left)]
        taken += rank == dawdler
        return rank

    return choose


@pytest.mark.parametrize("helpers", [False, True], ids=["alone", "helpers"])
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("stays", [0.0, 0.9, 0.99])
def test_sums_are_right_in_any_order_of_the_ranks(size, stays, helpers):
    for seed in range(15):
        play(size, at_random(seed, stays), helpers)


@pytest.mark.parametrize("helpers", [False, True], ids=["alone", "helpers"])
@pytest.mark.parametrize("size", [2, 3])
def test_the_others_wait_for_a_rank_that_is_late_at_any_point(size, helpers):
    for point in range(TURNS_OF_A_RANK):
        play(size, dawdling(size - 1, point), helpers)


def test_a_helper_finishes_tasks_that_the_rank_does_not_wait_for():
    lockstep = Lockstep(0, list(np.zeros((1, NUMBERS), np.int64)), fence=lambda: None, idle=lambda attempts: None)
    done = []

    def task(number):
        for step in range(3):
            yield done.append((number, step))

    for number in (1, 2):
        lockstep.issue(lambda number=number: task(number))
    helper = threading.Thread(target=lambda: [lockstep.advance() for _ in iter(lockstep.has_tasks, False)])
    helper.start()
    helper.join()
    assert not lockstep.has_tasks()
    assert done.index((2, 0)) < done.index((1, 2))  # the second has begun before the first is over
    assert sorted(done) == [(number, step) for number in (1, 2) for step in range(3)]


def test_the_error_of_a_task_is_raised_wherever_the_rank_waits():
    lockstep = Lockstep(0, list(np.zeros((1, NUMBERS), np.int64)), fence=lambda: None, idle=lambda attempts: None)
    numbers = [lockstep.issue(lambda: 1 / 0), lockstep.issue(lambda: ())]
    with pytest.raises(ZeroDivisionError):
        lockstep.advance()
    for number in numbers:
        with pytest.raises(ZeroDivisionError):
            lockstep.complete(number)
