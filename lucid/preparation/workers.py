"""Runs tasks in processes side by side, which end with the process that started them.

MPI and threads do not survive a fork, so this process is not forked. It starts one anew, which imports and loads what
the tasks need, and nothing else; the workers are forked from that one, and share its memory until they write to it.
"""

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

from lucid.errors import DataError

Task = TypeVar("Task")
_Contravariant = TypeVar("_Contravariant", contravariant=True)

_PROGRAM = "import sys; sys.path[:] = {path}; from lucid.preparation.workers import serve; serve({numbers})"
# The workers share the cores as it is.
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1"}


class Maker(Protocol[_Contravariant]):
    """What does the tasks. It is sent to another process."""

    def load(self) -> None:
        """Load what all tasks need: the memory that it takes is shared by the workers."""

    def __call__(self, task: _Contravariant) -> None:
        """Do a task. It may keep what it needs for the next."""


def run_tasks(maker: Maker[Task], tasks: Sequence[Task], workers: int) -> Iterator[Task]:
    """Call `maker` with each task, in up to `workers` processes; yield each task when it is done.

    With one worker all is done in this process. An exception in it is raised here; a worker that is killed is a
    `DataError`.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            maker(task)
            yield task
        return
    waiting = iter(tasks)
    under_way: dict[Connection, Task] = {}
    with _death_is_told(), _forked(maker, workers) as connections:
        for connection, task in zip(connections, waiting, strict=False):
            connection.send(task)
            under_way[connection] = task
        while under_way:
            ready: list[Any] = wait(list(under_way))
            for connection in ready:
                error = connection.recv()
                if error is not None:
                    raise error
                yield under_way.pop(connection)
                for task in islice(waiting, 1):
                    connection.send(task)
                    under_way[connection] = task


@contextmanager
def _death_is_told() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as gone:
        raise DataError(
            "a worker process was killed, or could not start, as when memory runs out: run the same command again, "
            "which goes on from there, perhaps with fewer --workers"
        ) from gone


@contextmanager
def _forked(maker: Maker[Task], count: int) -> Iterator[list[Connection]]:
    """Start `count` processes that serve tasks, for the length of the block."""
    with ExitStack() as stack:
        pairs = [multiprocessing.Pipe() for _ in range(count)]
        for end in (end for pair in pairs for end in pair):
            stack.callback(end.close)
        numbers = [theirs.fileno() for _, theirs in pairs]
        program = _PROGRAM.format(path=sys.path, numbers=numbers)
        # Closing their standard input ends them all, whatever they are doing, and so does the end of this process.
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.PIPE,
            pass_fds=numbers,
            env=os.environ | _ONE_THREAD,
        )
        stack.enter_context(process)
        for _, theirs in pairs:
            theirs.close()
        assert process.stdin is not None
        process.stdin.write(pickle.dumps(maker))
        process.stdin.flush()
        yield [ours for ours, _ in pairs]


def serve(numbers: Sequence[int]) -> None:
    """Fork a worker for each of these file descriptors, to serve tasks there, and wait for their end."""
    # Ctrl-C reaches every process of a terminal; the one that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    maker = pickle.load(sys.stdin.buffer)
    # What fails here fails again in the tasks, where it is told.
    with suppress(Exception):
        maker.load()
    # What is there for good is not searched for garbage: that would write to it.
    gc.freeze()
    for place, number in enumerate(numbers):
        if os.fork() == 0:
            for other in numbers[place + 1 :]:
                os.close(other)
            _serve(Connection(number), maker)
        os.close(number)
    for _ in numbers:
        os.wait()


def _serve(connection: Connection, function: Callable[[Any], None]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        while True:
            connection.send(_outcome(function, connection.recv()))
    finally:
        os._exit(0)


def _outcome(function: Callable[[Any], None], task: Any) -> Exception | None:
    try:
        function(task)
    except DataError as error:
        return error
    except Exception:
        return RuntimeError(traceback.format_exc())
    return None


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)
