"""What each rank of the pool runs: `python -m mpi4py -m rank_pool.rank ADDRESS STACKS`.

It waits for jobs at a socket, not in MPI, so that a rank without work takes no processor time. A job sees a world of
its own: `MPI.COMM_WORLD` and the environment are those of the ranks that it was started on.
"""

import faulthandler
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection
from pathlib import Path
from unittest.mock import patch

from mpi4py import MPI

from rank_pool.job import Done, Failure, Job
from rank_pool.state import process_kept

# What mpiexec sets for its ranks.
_OF_THE_LAUNCHER = ("PMI", "MPI_", "HYD")
# A job that nobody ends, as pytest was killed, ends its rank so long after its time.
_SECONDS_LEFT_ALONE = 60


def main() -> None:
    """Do jobs until the other side hangs up. SIGQUIT has the stacks of all threads written to STACKS/<rank>."""
    address, stacks = sys.argv[1:]
    world = MPI.COMM_WORLD
    # The world of a job on so many ranks; None for those that have no part in it.
    worlds = {size: world.Split(0 if world.rank < size else MPI.UNDEFINED) for size in range(1, world.size + 1)}
    with Path(stacks, str(world.rank)).open("w") as file, Client(address) as tests:
        faulthandler.register(signal.SIGQUIT, file)
        tests.send((world.rank, os.getpid()))
        while (job := _next(tests)) is not None:
            faulthandler.dump_traceback_later(job.seconds + _SECONDS_LEFT_ALONE, file=file, exit=True)
            tests.send(_do(job, worlds[job.ranks]))
            faulthandler.cancel_dump_traceback_later()


def _next(tests: Connection) -> Job | None:
    try:
        return tests.recv()
    except EOFError:
        return None


def _do(job: Job, world: MPI.Intracomm) -> bytes:
    """Return what came of the job, pickled."""
    try:
        # These ranks are the first of mpiexec's, so only their number differs for a job.
        launcher = {name: text for name, text in os.environ.items() if name.startswith(_OF_THE_LAUNCHER)}
        launcher |= {"PMI_SIZE": str(job.ranks), "MPI_LOCALNRANKS": str(job.ranks)}
        sys.path += [folder for folder in job.module_path if folder not in sys.path]
        with (
            process_kept(job.environment | launcher, job.working_folder),
            _captured(job.outputs / str(world.rank)),
            patch.object(MPI, "COMM_WORLD", world),
            patch.object(MPI, "Finalize"),
        ):
            function, arguments, named = pickle.loads(job.call)
            return pickle.dumps(Done(function(*arguments, **named)))
    except BaseException as error:
        return pickle.dumps(Failure(type(error).__name__, str(error), "".join(traceback.format_exception(error))))


@contextmanager
def _captured(path: Path) -> Iterator[None]:
    """Write all that is printed to `path`, also by libraries that write to the file descriptors 1 and 2."""
    before = [os.dup(number) for number in (1, 2)]
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    streams = sys.stdout, sys.stderr
    try:
        for number in (1, 2):
            os.dup2(output, number)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if not stream.closed:
                stream.flush()
        sys.stdout, sys.stderr = streams
        for number, descriptor in zip((1, 2), before, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(output)


if __name__ == "__main__":
    main()
