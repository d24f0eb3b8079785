"""Runs tasks in processes side by side: started anew (never forked), ended with the process that started them."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from lucid.errors import DataError

Task = TypeVar("Task")


def run_tasks(function: Callable[[Task], None], tasks: Sequence[Task], workers: int) -> Iterator[Task]:
    """Call `function` with each task, in up to `workers` processes; yield each task when it is done.

    With one worker all is done in this process. `function` is sent to each worker once, and may keep what it needs
    between calls. An exception in it is raised here; a worker that is killed is a `DataError`.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            function(task)
            yield task
        return
    waiting = iter(tasks)
    under_way: dict[Connection, Task] = {}
    with ExitStack() as stack:
        for task in islice(waiting, workers):
            connection = stack.enter_context(_worker(function))
            connection.send(task)
            under_way[connection] = task
        while under_way:
            ready: list[Any] = wait(list(under_way))
            for connection in ready:
                _receive(connection)
                yield under_way.pop(connection)
                for task in islice(waiting, 1):
                    connection.send(task)
                    under_way[connection] = task


@contextmanager
def _worker(function: Callable[[Task], None]) -> Iterator[Connection]:
    """Start a process that serves tasks, for the length of the block."""
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function), daemon=True)
    process.start()
    theirs.close()
    try:
        yield connection
    finally:
        connection.close()
        process.terminate()
        process.join()


def _receive(connection: Connection) -> None:
    try:
        error = connection.recv()
    except (EOFError, ConnectionError) as gone:
        raise DataError(
            "a worker process was killed, or could not start, as when memory runs out: run the same command again, "
            "which goes on from there, perhaps with fewer --workers"
        ) from gone
    if error is not None:
        raise error


def _serve(connection: Connection, function: Callable[[Task], None]) -> None:
    # Ctrl-C reaches every process of a terminal; the one that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The workers share the cores as it is.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            function(task)
        except DataError as error:
            connection.send(error)
        except Exception:
            connection.send(RuntimeError(traceback.format_exc()))
        else:
            connection.send(None)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
