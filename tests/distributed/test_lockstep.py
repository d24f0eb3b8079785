"""The lockstep of ranks on shared memory, in one process: threads stand for ranks, and a schedule says who runs when.

A thread runs only while it has the turn, and gives it back at every point where another rank could come in between:
before and after each number that is told or read, each element that is read or written, and while it waits.
"""

import itertools
import random
import threading

import numpy as np
import pytest

from lucid.distributed.backends.lockstep import NUMBERS, Lockstep

STEPS, ELEMENTS, LONGEST = 3, 4, 100_000
# How many turns a rank takes about in all, and how many others take at most before they wait for one that stops.
TURNS_OF_A_RANK, LONG_ENOUGH = 90, 100
BUCKETS = [slice(0, 2), slice(2, 4)]


class Turns:
    """Lets one of several threads run at a time, until all are done; `choose` picks it, from those that are left."""

    def __init__(self, programs, choose):
        self.go = [threading.Semaphore(0) for _ in programs]
        self.back = threading.Semaphore(0)
        self.left = list(range(len(programs)))
        self.errors = []
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

    def play(self, rank, program):
        self.go[rank].acquire()
        try:
            program(self)
        except Exception as error:
            self.errors.append(error)
        self.left.remove(rank)
        self.back.release()

    def give(self, rank):
        """Let others run, and go on at the next turn."""
        self.back.release()
        self.go[rank].acquire()


def program(rank, size, signals, memory):
    """A rank that sums its row of `memory` over all, bucket by bucket, and overwrites it as soon as it may."""

    def run(turns):
        def give(*_):
            turns.give(rank)

        lockstep = Lockstep(rank, signals, fence=give, idle=give)

        def share(bucket):
            # Element by element, each read and each write a point of its own.
            for element in range(bucket.start + rank, bucket.stop, size):
                total = 0
                for row in memory:
                    give()
                    total += row[element]
                for row in memory:
                    give()
                    row[element] = total

        for step in range(STEPS):
            numbers = []
            for bucket in BUCKETS:
                for element in range(bucket.start, bucket.stop):
                    memory[rank, element] = value_of(step, element, rank)
                    give()
                numbers.append(lockstep.issue(lambda bucket=bucket: share(bucket)))
            for bucket, number in zip(BUCKETS, numbers, strict=True):
                lockstep.complete(number)
                for element in range(bucket.start, bucket.stop):
                    give()
                    total = sum(value_of(step, element, other) for other in range(size))
                    assert memory[rank, element] == total, f"rank {rank}, step {step}, element {element}"
                    memory[rank, element] = -1

    return run


def value_of(step, element, rank):
    """Of all sums that mix steps or elements, or leave out a rank, none is right by chance."""
    return 10 ** (3 * step) * (1 + element) * 7**rank


def play(size, choose):
    signals = list(np.zeros((size, NUMBERS), np.int64))
    memory = np.zeros((size, ELEMENTS), np.int64)
    Turns([program(rank, size, signals, memory) for rank in range(size)], choose)


def at_random(seed, stays):
    """A schedule in which a rank goes on with probability `stays`."""
    draw, last = random.Random(seed), 0

    def choose(left):
        nonlocal last
        if last not in left or draw.random() >= stays:
            last = draw.choice(left)
        return last

    return choose


def dawdling(dawdler, point):
    """A schedule in which all take turns, but that one rank stops at a point until the others wait for it."""
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


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("stays", [0.0, 0.9, 0.99])
def test_sums_are_right_in_whatever_order_the_ranks_come(size, stays):
    for seed in range(15):
        play(size, at_random(seed, stays))


@pytest.mark.parametrize("size", [2, 3])
def test_a_rank_that_dawdles_at_any_point_is_waited_for(size):
    for point in range(TURNS_OF_A_RANK):
        play(size, dawdling(size - 1, point))
