"""Ends a run in which ranks wait in a collective for one that does not come: hung, stopped, or cut off.

Every rank has a watchdog, a thread that looks at its own main thread about twice a second. When that has waited for
half the limit, the watchdog begins to ask those of the other ranks where they are, on a channel of its own. When the
limit is over, and no rank has moved for as long, the lowest rank that waits says who is missing, and ends all. A rank
that gets no answer acts on its own: one that is cut off has to end itself.

Between GPUs the host does not wait: `wait_for_device` is where it does, and the watchdog asks whether a connection has
broken meanwhile (`Communicator.failure`).

A rank may keep the others waiting on purpose: the first saves a checkpoint, one compiles longer than the rest. Its
watchdog answers so (`Whereabouts.phase`), and gets more time. A rank whose interpreter is too busy to answer counts as
missing only when it has been silent for half the limit.
"""

import json
import math
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from lucid.distributed.communicators.agreement import gather_texts, is_agreed
from lucid.distributed.communicators.communicator import LONGEST_MESSAGE, Communicator, SideChannel
from lucid.distributed.health.guard import print_and_abort, report_and_abort
from lucid.distributed.health.hang import Sighting, describe
from lucid.errors import ExitCode, TrainingError
from lucid.launch.rank_status import RankStatus

# How many times the limit a rank may be in a phase that takes long, or in its start, while the others wait.
PHASE_FACTOR = 6
# The lowest rank that waits speaks; if it has not ended the run after this time, each rank does so itself.
_SECONDS_FOR_THE_LOWEST = 5.0
# If even the abort hangs, the kernel ends this process.
_SECONDS_FOR_THE_ABORT = 15
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_BETWEEN_QUESTIONS = 5.0
_LONGEST_STACK = 10


@contextmanager
def watched(communicator: Communicator, seconds: float) -> Iterator[None]:
    """Within the block, end all ranks with `ExitCode.HUNG` when some wait for longer than `seconds`; 0: never.

    All ranks enter together, and leave together, unless an error that they have not agreed on ends them all anyway.
    Raises `LaunchError` if the MPI library does not let a second thread communicate.
    """
    channel = communicator.side_channel() if seconds else None
    if channel is None:
        yield
        return
    watch = _Watch(communicator, channel, seconds, gather_texts(communicator, socket.gethostname()))
    thread = threading.Thread(target=watch.run, name="watchdog", daemon=True)
    thread.start()
    in_order = True
    try:
        yield
    except BaseException as error:
        in_order = is_agreed(error)
        raise
    finally:
        if in_order:
            communicator.barrier()  # watched as well; nobody asks afterwards
        watch.ended.set()
        thread.join()
        if in_order:
            channel.close()


class _Watch:
    """The watchdog of one rank.

    Its clock stands still while the process does: a job that was suspended as a whole is not taken for a hung one.
    """

    def __init__(self, communicator: Communicator, channel: SideChannel, limit: float, hosts: list[str]) -> None:
        self.ended = threading.Event()
        self._communicator, self._channel = communicator, channel
        self._limit, self._hosts = limit, hosts
        self._between_looks = min(_SECONDS_BETWEEN_LOOKS, limit / 8)
        self._between_questions = min(_SECONDS_BETWEEN_QUESTIONS, limit / 8)
        self._clock = 0.0
        self._place, self._arrived = communicator.whereabouts.place(), 0.0
        # Of the wait that is asked about: when that began and was last done, what came back and when, and since when
        # it has been in vain.
        self._began_asking, self._asked = math.inf, -math.inf
        self._answers: dict[int, tuple[float, Sighting]] = {}
        self._in_vain_since = math.inf

    def run(self) -> None:
        before = time.monotonic()
        while not self.ended.wait(self._between_looks):
            now = time.monotonic()
            self._clock += min(now - before, 2 * self._between_looks)
            before = now
            self._look()
            self._listen()
            self._check()
            if self._place.collective and self._seconds_here >= self._limit / 2:
                self._ask()
                self._judge()

    @property
    def _seconds_here(self) -> float:
        return self._clock - self._arrived

    def _look(self) -> None:
        """See whether this rank has moved; what was heard belongs to the old place then."""
        place = self._communicator.whereabouts.place()
        if place != self._place:
            self._place, self._arrived = place, self._clock
            self._began_asking, self._asked, self._in_vain_since = math.inf, -math.inf, math.inf
            self._answers.clear()

    def _check(self) -> None:
        """End the run if a communication has failed that the main thread does not wait for."""
        failure = self._communicator.failure()
        if failure:
            signal.alarm(_SECONDS_FOR_THE_ABORT)
            report_and_abort(self._communicator, TrainingError(failure))

    def _listen(self) -> None:
        """Answer all questions, and note all answers."""
        while (arrival := self._channel.receive()) is not None:
            rank, message = arrival
            if message:
                self._answers[rank] = self._clock, _decode(message)
            else:
                self._channel.send(_encode(self._sighting()), rank)

    def _sighting(self) -> Sighting:
        return Sighting(self._place, self._seconds_here, _main_stack())

    def _ask(self) -> None:
        """Send the empty message, the question, to all other ranks, unless that was just done."""
        self._began_asking = min(self._began_asking, self._clock)
        if self._clock - self._asked >= self._between_questions:
            self._asked = self._clock
            for rank in self._others():
                self._channel.send(b"", rank)

    def _judge(self) -> None:
        """End the run if this rank has waited long enough, and so have those that it waits for."""
        if self._seconds_here < self._limit or not all(map(self._stands_still, self._others())):
            self._in_vain_since = math.inf
            return
        self._in_vain_since = min(self._in_vain_since, self._clock)
        sightings = {rank: answer for rank, (_, answer) in self._answers.items() if not self._is_silent(rank)}
        sightings[self._communicator.rank] = self._sighting()
        lowest = min(rank for rank, sighting in sightings.items() if sighting.waits)
        if lowest == self._communicator.rank or self._clock - self._in_vain_since >= _SECONDS_FOR_THE_LOWEST:
            signal.alarm(_SECONDS_FOR_THE_ABORT)
            print_and_abort(self._communicator, describe(sightings, self._hosts), ExitCode.HUNG)

    def _stands_still(self, rank: int) -> bool:
        """Return whether `rank` has been in one place for as long as it may, or has not been heard of."""
        if rank not in self._answers:
            return self._is_silent(rank)
        heard, sighting = self._answers[rank]
        may_take_long = not sighting.waits and (sighting.place.phase or not sighting.place.warm)
        seconds = sighting.seconds + (self._clock - heard if self._is_silent(rank) else 0.0)
        return seconds >= self._limit * (PHASE_FACTOR if may_take_long else 1)

    def _is_silent(self, rank: int) -> bool:
        heard = self._answers[rank][0] if rank in self._answers else self._began_asking
        return self._clock - heard >= self._limit / 2

    def _others(self) -> list[int]:
        return [rank for rank in range(self._communicator.size) if rank != self._communicator.rank]


def _main_stack() -> tuple[str, ...]:
    """Return the innermost calls of the main thread, without their source: reading that could hang as well."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    calls = [f"{call.f_code.co_filename}:{line} in {call.f_code.co_name}" for call, line in traceback.walk_stack(frame)]
    return tuple(reversed(calls[:_LONGEST_STACK]))


def _encode(sighting: Sighting) -> bytes:
    """Return a sighting as a message that fits into the channel, with less of its stack if need be."""
    content: dict[str, Any] = asdict(sighting)
    while len(message := json.dumps(content).encode()) > LONGEST_MESSAGE:
        content["stack"] = content["stack"][1:]
    return message


def _decode(message: bytes) -> Sighting:
    content = json.loads(message)
    return Sighting(RankStatus(**content["place"]), content["seconds"], tuple(content["stack"]))
