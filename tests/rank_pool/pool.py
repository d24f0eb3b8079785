"""The tests' side of the pool: starts it, gives it jobs, and ends it when one goes wrong in a way that jobs may not."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from launching import FEW_CORES

from rank_pool.job import Done, Failure, Job

RANKS = 4
_SECONDS_TO_START = 120
_SECONDS_BETWEEN_LOOKS = 0.5
# When one rank has failed, the others may be waiting for it.
_SECONDS_FOR_THE_OTHERS = 5
_SECONDS_FOR_STACKS = 2
_SECONDS_TO_LEAVE = 10
# Read once by a process: a job with another value needs other processes.
_READ_ONCE = "LUCID_KERNELS"


class JobError(Exception):
    """A job has raised. `failures` has the ranks on which it did; the pool goes on."""

    def __init__(self, failures: dict[int, Failure], outputs: list[str]) -> None:
        traces = (f"rank {rank}: {failure.trace}" for rank, failure in failures.items())
        super().__init__("\n".join((*traces, *_titled(outputs))))
        self.failures = failures


class PoolError(Exception):
    """A job hung, or ended its process. The next job starts a new pool. `output` is what the ranks had printed."""

    def __init__(self, reason: str, outputs: list[str], stacks: list[str]) -> None:
        super().__init__("\n".join((reason, *_titled(outputs), *_titled(stacks, "stacks of "))))
        self.output = "".join(outputs)


@dataclass(frozen=True)
class Result:
    """What a job returned on a rank, and what it printed there."""

    value: Any
    output: str


class RankPool:
    """Up to four ranks that do one job after the other. They start with the first."""

    def __init__(self, mpiexec: str, folder: Path) -> None:
        self._mpiexec, self._folder = mpiexec, folder
        self._started: _Started | None = None
        self._jobs = 0

    def run(
        self, ranks: int, function: Callable[..., Any], *arguments: Any, seconds: float = 60, **named: Any
    ) -> list[Result]:
        """Call `function`, which a module has at its top, on the first `ranks` of the pool; return what each gave.

        There it finds a world of `ranks`, and the environment and working directory that this process has now. Raises
        `JobError` with all tracebacks if it raised on any rank; `PoolError`, with the stacks of all, if it took longer
        than `seconds`, if a rank waits for one that has raised, or if one has ended.
        """
        self._jobs += 1
        outputs = self._folder / f"job{self._jobs}"
        outputs.mkdir()
        job = Job(
            call=pickle.dumps((function, arguments, named)),
            ranks=ranks,
            environment=os.environ | FEW_CORES,
            working_folder=os.getcwd(),
            module_path=sys.path,
            outputs=outputs,
            seconds=seconds,
        )
        started = self._ready()
        try:
            answers = started.do(job)
        except BaseException:
            started.kill()  # a job that was interrupted goes on
            self._started = None
            raise
        texts = _texts(outputs, ranks)
        failures = {rank: answer for rank, answer in enumerate(answers) if isinstance(answer, Failure)}
        if failures:
            raise JobError(failures, texts)
        return [Result(answer.value, text) for answer, text in zip(answers, texts, strict=True)]

    def close(self) -> None:
        """End all ranks."""
        if self._started is not None:
            self._started.dismiss()
            self._started = None

    def _ready(self) -> "_Started":
        if self._started is not None and self._started.read_once != os.environ.get(_READ_ONCE):
            self.close()
        if self._started is None:
            folder = self._folder / f"pool{self._jobs}"
            folder.mkdir()
            self._started = _Started(self._mpiexec, folder)
        return self._started


class _Started:
    """An mpiexec, and a connection to each of its ranks."""

    def __init__(self, mpiexec: str, folder: Path) -> None:
        self.read_once = os.environ.get(_READ_ONCE)
        self._folder = folder
        self._connections: list[Connection] = []
        self._pids: list[int] = []
        self._log = (folder / "log").open("w+")
        # The address of a socket may have some hundred characters only.
        with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as listener:
            address = f"{short}/ranks"
            listener.bind(address)
            listener.listen(RANKS)
            listener.settimeout(_SECONDS_BETWEEN_LOOKS)
            self._process = subprocess.Popen(
                [
                    *(mpiexec, "-prepend-rank", "-n", str(RANKS)),
                    *(sys.executable, "-m", "mpi4py", "-m", "rank_pool.rank", address, str(folder)),
                ],
                env=os.environ | FEW_CORES | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                cwd=folder,  # the folder of the first test that needs the pool is removed after it
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                self._accept(listener)
            except BaseException:
                self.kill()
                raise

    def do(self, job: Job) -> list[Done | Failure]:
        """Return the answer of each rank. Raises `PoolError`."""
        connections = self._connections[: job.ranks]
        for connection in connections:
            with suppress(BrokenPipeError):  # found below
                connection.send(job)
        answers: dict[int, Done | Failure] = {}
        deadline = time.monotonic() + job.seconds
        while len(answers) < job.ranks:
            missing = [connection for rank, connection in enumerate(connections) if rank not in answers]
            ready = wait(missing, max(0, deadline - time.monotonic()))
            if not ready:
                raise self._ended(job, answers)
            for connection in ready:
                rank = connections.index(connection)
                try:
                    answers[rank] = pickle.loads(connection.recv())
                except (EOFError, ConnectionResetError):
                    raise self._ended(job, answers, f"rank {rank} has ended in the job\n{self._last_words()}") from None
                if isinstance(answers[rank], Failure):
                    deadline = min(deadline, time.monotonic() + _SECONDS_FOR_THE_OTHERS)
        return [answers[rank] for rank in range(job.ranks)]

    def dismiss(self) -> None:
        """Let the ranks, which have nothing to do, end by themselves."""
        for connection in self._connections:
            connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_LEAVE)
        self.kill()

    def kill(self) -> None:
        """Kill mpiexec and the ranks, and return when they are gone."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        for connection in self._connections:
            connection.close()
        self._log.close()

    def _accept(self, listener: socket.socket) -> None:
        """Wait until all ranks have called, and order them."""
        deadline = time.monotonic() + _SECONDS_TO_START
        called: dict[int, tuple[int, Connection]] = {}
        while len(called) < RANKS:
            try:
                accepted, _ = listener.accept()
            except TimeoutError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise PoolError(f"{RANKS} ranks do not start\n{self._last_words()}", [], []) from None
                continue
            connection = Connection(accepted.detach())
            rank, pid = connection.recv()
            called[rank] = pid, connection
            self._pids.append(pid)
        self._connections = [connection for _, (_, connection) in sorted(called.items())]

    def _ended(self, job: Job, answers: dict[int, Done | Failure], reason: str = "") -> PoolError:
        """Return the error that says who did not answer, and why."""
        failed = [f"rank {rank}: {answer.trace}" for rank, answer in answers.items() if isinstance(answer, Failure)]
        waits = [str(rank) for rank in range(job.ranks) if rank not in answers]
        if not reason:
            after = f"{_SECONDS_FOR_THE_OTHERS} s after another has failed" if failed else f"{job.seconds} s"
            reason = f"rank {' and '.join(waits)} not done after {after}"
        stacks = self._stacks()
        return PoolError("\n".join((reason, *failed)), _texts(job.outputs, job.ranks), stacks)

    def _stacks(self) -> list[str]:
        """Return the stacks of all ranks, as far as they can still tell them."""
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT)
        deadline = time.monotonic() + _SECONDS_FOR_STACKS
        texts: list[str] = []
        while time.monotonic() < deadline:
            before, texts = texts, _texts(self._folder, RANKS)
            if texts == before and all(texts):
                break
            time.sleep(0.1)  # the ranks write to files, which nothing can wait for
        return texts

    def _last_words(self) -> str:
        """Return what mpiexec has said, and the ranks outside of jobs; wait for its end, if it is about to."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_FOR_THE_OTHERS)
        return (self._folder / "log").read_text()


def _texts(folder: Path, ranks: int) -> list[str]:
    paths = [folder / str(rank) for rank in range(ranks)]
    return [path.read_text(errors="replace") if path.exists() else "" for path in paths]


def _titled(texts: list[str], what: str = "output of ") -> list[str]:
    return [f"---- {what}rank {rank}:\n{text}" for rank, text in enumerate(texts) if text]
