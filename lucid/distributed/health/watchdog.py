"""Ends a run in which ranks wait in a collective for a rank that does not come: it hangs, was stopped, or is cut off.

Every rank has a watchdog: a thread that reads the status of its own rank about twice a second. When the rank has waited
for half the limit, its watchdog starts to ask the watchdogs of the other ranks for their status, on a channel of its
own. When the limit has passed, and no rank has moved for that long, the lowest rank that waits reports which rank is
missing, and ends all ranks. A rank that gets no answer acts by itself: if it is cut off, it has to end itself.

Between GPUs the host waits only in `wait_for_device`. So the watchdog also asks whether a connection has failed
(`Communicator.failure`).

A rank that does not answer may still be seen: its parent has lent it the page on which it writes its status, and other
ranks of its host can read that.

A rank may make the others wait on purpose: the first one saves a checkpoint, or one compiles for longer than the rest.
Its status says so (`StatusWriter.phase`), and it gets more time. A rank whose interpreter is too busy to answer counts
as missing only after a silence of half the limit.
"""

import json
import math
import signal
import socket
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from lucid.distributed.communicators.agreement import gather_texts, is_agreed
from lucid.distributed.communicators.communicator import LONGEST_MESSAGE, Communicator, SideChannel
from lucid.distributed.health.guard import print_and_abort, report_and_abort
from lucid.distributed.health.hang_report import Sighting, describe, history
from lucid.errors import ExitCode, TrainingError
from lucid.launch.rank_status import RankStatus, Wait, path_of_lent_page, read_page, read_waits

# A rank may make the others wait for this many times the limit in a named phase, or before its second step.
PHASE_FACTOR = 6
# The lowest rank that waits reports. If it has not ended the run after this time, every rank ends it.
_SECONDS_FOR_THE_LOWEST = 5.0
# If even the abort hangs, the kernel ends this process.
_SECONDS_FOR_THE_ABORT = 15
_SECONDS_TO_WRITE = 2.0
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_BETWEEN_QUESTIONS = 5.0
_LONGEST_STACK = 10


@contextmanager
def watched(communicator: Communicator, seconds: float, folder: Path | None = None) -> Iterator[None]:
    """Within the block, end all ranks with `ExitCode.HUNG` when some wait for longer than `seconds`; 0 means never.

    The message goes, with the newest waits of all ranks that answer, to a file `hang-<time>.txt` in `folder`, too.
    All ranks enter the block together, and leave it together, unless an error that is not agreed ends them all anyway.
    Raises `LaunchError` if the MPI library does not allow a second thread to communicate.
    """
    channel = communicator.side_channel() if seconds else None
    if channel is None:
        yield
        return
    own = _Place(socket.gethostname(), path_of_lent_page())
    places = [_Place(*json.loads(text)) for text in gather_texts(communicator, json.dumps(own))]
    watch = _Watch(communicator, channel, seconds, places, folder)
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
            communicator.barrier()  # the watchdogs still watch it; afterwards no rank asks
        watch.ended.set()
        thread.join()
        if in_order:
            channel.close()


class _Place(NamedTuple):
    """The host of a rank, and where other ranks of that host find the page with its status; "" if there is none."""

    host: str
    page: str


class _Watch:
    """The watchdog of one rank.

    Its clock stops while the process is stopped: a job that was suspended as a whole does not count as hung.
    """

    def __init__(
        self, communicator: Communicator, channel: SideChannel, limit: float, places: list[_Place], folder: Path | None
    ) -> None:
        self.ended = threading.Event()
        self._folder = folder
        self._communicator, self._channel = communicator, channel
        self._limit, self._places = limit, places
        self._between_looks = min(_SECONDS_BETWEEN_LOOKS, limit / 8)
        self._between_questions = min(_SECONDS_BETWEEN_QUESTIONS, limit / 8)
        self._clock = 0.0
        self._status, self._changed = communicator.status.current, 0.0
        # About the present wait: when this watchdog first and last asked the others, their answers with the times of
        # arrival, and since when the wait has been in vain.
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
            if self._status.collective and self._seconds_unchanged >= self._limit / 2:
                self._ask()
                self._judge()

    @property
    def _seconds_unchanged(self) -> float:
        return self._clock - self._changed

    def _look(self) -> None:
        """Read this rank's status. If it has changed, forget the answers, which belong to the status before."""
        status = self._communicator.status.current
        if status != self._status:
            self._status, self._changed = status, self._clock
            self._began_asking, self._asked, self._in_vain_since = math.inf, -math.inf, math.inf
            self._answers.clear()

    def _check(self) -> None:
        """End the run if a communication has failed for which the main thread does not wait."""
        failure = self._communicator.failure()
        if failure:
            signal.alarm(_SECONDS_FOR_THE_ABORT)
            report_and_abort(self._communicator, TrainingError(failure))

    def _listen(self) -> None:
        """Answer all questions, and keep all answers."""
        while (arrival := self._channel.receive()) is not None:
            rank, message = arrival
            if message:
                self._answers[rank] = self._clock, _decode(message)
            else:
                self._channel.send(_encode(self._sighting()), rank)

    def _sighting(self) -> Sighting:
        return Sighting(self._status, self._seconds_unchanged, _main_stack(), tuple(self._communicator.status.waits))

    def _ask(self) -> None:
        """Ask all other ranks by an empty message, unless this was done a moment ago."""
        self._began_asking = min(self._began_asking, self._clock)
        if self._clock - self._asked >= self._between_questions:
            self._asked = self._clock
            for rank in self._others():
                self._channel.send(b"", rank)

    def _judge(self) -> None:
        """End the run if this rank has waited for the limit, and no other rank has moved for as long as it may."""
        if self._seconds_unchanged < self._limit or not all(map(self._stands_still, self._others())):
            self._in_vain_since = math.inf
            return
        self._in_vain_since = min(self._in_vain_since, self._clock)
        sightings = {rank: answer for rank, (_, answer) in self._answers.items() if not self._is_silent(rank)}
        sightings[self._communicator.rank] = self._sighting()
        lowest = min(rank for rank, sighting in sightings.items() if sighting.waits)
        if lowest == self._communicator.rank or self._clock - self._in_vain_since >= _SECONDS_FOR_THE_LOWEST:
            signal.alarm(_SECONDS_FOR_THE_ABORT)
            hosts, unanswered = [place.host for place in self._places], self._read_pages(sightings)
            message = describe(sightings, hosts, unanswered)
            if path := self._written(f"{message}\n\n{history(sightings | unanswered, hosts)}"):
                message += f"\nthe newest waits of these ranks are in {path}"
            print_and_abort(self._communicator, message, ExitCode.HUNG)

    def _read_pages(self, answered: Mapping[int, Sighting]) -> dict[int, Sighting]:
        """Return what the pages of this host say of ranks that have not answered."""
        found, here = {}, self._places[self._communicator.rank].host
        for rank, place in enumerate(self._places):
            if rank in answered or place.host != here or (page := read_page(place.page)) is None:
                continue
            waits = tuple(read_waits(page))
            since = max((wait.ended or wait.began for wait in waits), default=math.nan)
            found[rank] = Sighting(RankStatus.read(page), time.monotonic() - since, (), waits)
        return found

    def _written(self, report: str) -> Path | None:
        """Write the report into the folder; return its path, or None if that fails or takes long."""
        folder, done = self._folder, threading.Event()
        if folder is None:
            return None
        path = folder / f"hang-{time.strftime('%Y%m%d-%H%M%S')}.txt"

        def write() -> None:
            with suppress(OSError):
                path.write_text(report, encoding="utf-8")
                done.set()

        # A file system may be what hangs.
        threading.Thread(target=write, name="report", daemon=True).start()
        return path if done.wait(_SECONDS_TO_WRITE) else None

    def _stands_still(self, rank: int) -> bool:
        """Return whether the status of `rank` has not changed for longer than it may, or `rank` is silent."""
        if rank not in self._answers:
            return self._is_silent(rank)
        arrived, sighting = self._answers[rank]
        may_take_long = not sighting.waits and (sighting.status.phase or not sighting.status.warm)
        seconds = sighting.seconds + (self._clock - arrived if self._is_silent(rank) else 0.0)
        return seconds >= self._limit * (PHASE_FACTOR if may_take_long else 1)

    def _is_silent(self, rank: int) -> bool:
        arrived = self._answers[rank][0] if rank in self._answers else self._began_asking
        return self._clock - arrived >= self._limit / 2

    def _others(self) -> list[int]:
        return [rank for rank in range(self._communicator.size) if rank != self._communicator.rank]


def _main_stack() -> tuple[str, ...]:
    """Return the innermost calls of the main thread, without source lines: to read these could hang too."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    calls = [f"{call.f_code.co_filename}:{line} in {call.f_code.co_name}" for call, line in traceback.walk_stack(frame)]
    return tuple(reversed(calls[:_LONGEST_STACK]))


def _encode(sighting: Sighting) -> bytes:
    """Return a sighting as a message that fits into the channel, with as many of its waits as fit."""
    content: dict[str, Any] = asdict(sighting)
    while len(message := zlib.compress(json.dumps(content).encode())) > LONGEST_MESSAGE:
        longer = "waits_so_far" if content["waits_so_far"] else "stack"
        content[longer] = content[longer][1:]
    return message


def _decode(message: bytes) -> Sighting:
    content = json.loads(zlib.decompress(message))
    waits = tuple(Wait(*wait) for wait in content["waits_so_far"])
    return Sighting(RankStatus(**content["status"]), content["seconds"], tuple(content["stack"]), waits)
