"""Starts the processes of a side, and gives them their turns."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from side import Settings

SECONDS_TO_START, SECONDS_A_TURN, SECONDS_TO_LEAVE = 300, 1200, 20
HERE = Path(__file__).parent


class SideError(Exception):
    """A side failed: it says which, and how its output ends."""


@dataclass(frozen=True)
class Turn:
    """What a side did in a turn: `seconds` of its slowest rank, the loss of each step, and GiB of its largest rank."""

    seconds: float
    losses: list[float]
    peak: float


class Running:
    """A side whose processes run, for the length of a `with` block."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._ranks: list[IO[str]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._log = Path(f"{settings.address}.log")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._end)
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(self.settings.address)
            listener.listen()
            self._start()
            self._accept(listener)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def take_turn(self, steps: int, dropout: bool) -> Turn:
        for rank in self._ranks:
            rank.write(json.dumps({"steps": steps, "dropout": dropout}) + "\n")
            rank.flush()
        answers = [self._answer(rank) for rank in self._ranks]
        return Turn(
            seconds=max(answer["seconds"] for answer in answers),
            losses=[sum(shares) for shares in zip(*(answer["losses"] for answer in answers), strict=True)],
            peak=max(answer["peak"] for answer in answers),
        )

    def _start(self) -> None:
        side = self.settings.side
        threads = str(side.threads)
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        # As launch/mpirun.sh does: let glibc keep pages that a step frees and takes again. It helps every side.
        pages = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "4294967296")
        environment = os.environ | dict.fromkeys(names, threads) | pages
        command = [sys.executable, "-m", "mpi4py"] if side.library == "lucid" else [sys.executable]
        command += [str(HERE / f"{side.library}_side.py"), self.settings.as_argument()]
        if side.library == "lucid" and side.ranks > 1:
            commands = [[find_mpiexec(), "-n", str(side.ranks), *command]]
        else:
            commands = [command] * side.ranks
        with self._log.open("wb") as log:
            for number, each in enumerate(commands):
                self._processes.append(
                    subprocess.Popen(
                        each,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        env=environment | {"RANK": str(number)},
                        start_new_session=True,
                    )
                )

    def _accept(self, listener: socket.socket) -> None:
        """Wait until all ranks have built their models."""
        listener.settimeout(0.5)
        deadline = time.monotonic() + SECONDS_TO_START
        while len(self._ranks) < self.settings.side.ranks:
            with suppress(TimeoutError):
                connection, _ = listener.accept()
                connection.settimeout(SECONDS_A_TURN)
                with connection:
                    lines = connection.makefile("rw")
                self._ranks.append(lines)
                self._answer(lines)
            if time.monotonic() > deadline or any(process.poll() is not None for process in self._processes):
                raise self._failure("did not start")

    def _answer(self, rank: IO[str]) -> dict[str, Any]:
        try:
            line = rank.readline()
        except OSError as error:
            raise self._failure("did not answer in time") from error
        if not line:
            raise self._failure("ended")
        return json.loads(line)

    def _failure(self, what: str) -> SideError:
        output = self._log.read_text(errors="replace").splitlines()
        return SideError("\n".join([f"{self.settings.side.name}: {what}. Its output ends with:", *output[-12:]]))

    def _end(self) -> None:
        """Hang up, upon which the processes leave, and see to it that they do."""
        for rank in self._ranks:
            with suppress(OSError):
                rank.close()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_LEAVE)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def find_mpiexec() -> str:
    """Return the launcher of the MPI in this environment."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise SideError("there is no mpiexec: install lucid[mpich] into this environment")
    return found
