"""Runs tasks in processes side by side, which end with the process that started them.

MPI and threads do not survive a fork, so this process is not forked. It starts a fresh one, the server, which imports
only what the tasks need. The workers are forked from the server, and share its memory until they write to it.
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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from lucid.errors import DataError, LucidError, fault_of_the_machine

Input = TypeVar("Input")

_PROGRAM = "import sys; sys.path[:] = {path}; from lucid.preparation.processes import serve; serve({descriptors})"
# The workers share the cores already.
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Task(Generic[Input]):
    """The work on `input`, of about `size` bytes, that makes the file `output`, whole or not at all."""

    input: Input
    output: Path
    size: int


def run_tasks(
    function: Callable[[Input, Path], None], tasks: Sequence[Task[Input]], processes: int
) -> Iterator[Task[Input]]:
    """Call `function(input, output)` for each task, in up to `processes` processes; yield each task when it is done.

    `function` is pickled, and may keep things for the next task. With one process it runs in this one. Raises the
    exception of a task (with several processes a `RuntimeError` with its traceback, unless a sentence explains it), and
    `DataError` if a worker is killed.
    """
    processes = min(processes, len(tasks))
    if processes <= 1:
        for task in tasks:
            function(task.input, task.output)
            yield task
        return
    try:
        with _workers(function, processes) as connections:
            yield from _handed_out(tasks, connections)
    except (EOFError, ConnectionError) as gone:
        raise DataError(
            "a worker process was killed or did not start, perhaps for lack of memory: run the same command again to "
            "resume, with fewer --processes if needed"
        ) from gone


def _handed_out(tasks: Sequence[Task[Input]], connections: Sequence[Connection]) -> Iterator[Task[Input]]:
    """Give each worker a task whenever it has none; yield each task when it is done."""
    waiting = iter(tasks)
    under_way: dict[Connection, Task[Input]] = {}
    idle: Any = connections
    while True:
        for connection, task in zip(idle, waiting, strict=False):
            connection.send(task)
            under_way[connection] = task
        if not under_way:
            return
        idle = wait(list(under_way))
        for connection in idle:
            error = connection.recv()
            if error is not None:
                raise error
            yield under_way.pop(connection)


@contextmanager
def _workers(function: Callable[[Any, Path], None], count: int) -> Iterator[list[Connection]]:
    """Start `count` processes that do tasks, for the length of the block."""
    with ExitStack() as stack:
        pairs = [multiprocessing.Pipe() for _ in range(count)]
        for end in (end for pair in pairs for end in pair):
            stack.callback(end.close)
        descriptors = [theirs.fileno() for _, theirs in pairs]
        # Closing their standard input ends all of them, whatever they are doing. So does the end of this process.
        server = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM.format(path=sys.path, descriptors=descriptors)],
            stdin=subprocess.PIPE,
            pass_fds=descriptors,
            env=os.environ | _ONE_THREAD,
        )
        stack.enter_context(server)
        for _, theirs in pairs:
            theirs.close()
        assert server.stdin is not None
        server.stdin.write(pickle.dumps(function))
        server.stdin.flush()
        yield [ours for ours, _ in pairs]


def serve(descriptors: Sequence[int]) -> None:
    """Fork a worker for each file descriptor, which gets its tasks there, and wait until all have ended."""
    # Ctrl-C reaches every process of a terminal. The process that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    function = pickle.load(sys.stdin.buffer)
    # Searching for garbage would write to the shared memory.
    gc.freeze()
    for index, descriptor in enumerate(descriptors):
        if os.fork() == 0:
            for other in descriptors[index + 1 :]:
                os.close(other)
            _work(Connection(descriptor), function)
        os.close(descriptor)
    for _ in descriptors:
        os.wait()


def _work(connection: Connection, function: Callable[[Any, Path], None]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        while True:
            task: Task[Any] = connection.recv()
            error: Exception | None = None
            try:
                function(task.input, task.output)
            except Exception as failure:
                # Of the others only the traceback says where they come from.
                is_explained = isinstance(failure, LucidError) or fault_of_the_machine(failure)
                error = failure if is_explained else RuntimeError(traceback.format_exc())
            connection.send(error)
    finally:
        os._exit(0)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)
