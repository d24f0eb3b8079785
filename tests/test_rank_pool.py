"""The pool of ranks: jobs cannot get in each other's way, whatever they do."""

import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from rank_pool.pool import JobError, PoolError
from threadpoolctl import threadpool_info, threadpool_limits

import lucid
from lucid.distributed import session
from lucid.kernels import threads


def sizes() -> tuple[int, int, str]:
    """Return the sizes of the job's world, as MPI, the session and the environment have it."""
    from mpi4py import MPI

    with session() as group:
        return MPI.COMM_WORLD.size, group.size, os.environ["PMI_SIZE"]


def print_everywhere(word: str) -> None:
    print(word, "from Python")
    print(word, "as an error", file=sys.stderr)
    os.write(1, f"{word} from a library\n".encode())
    subprocess.run(["echo", word, "from a child"], check=True)


def own_rank() -> int:
    return int(os.environ["PMI_RANK"])


def wait_for_all() -> None:
    with session() as group:
        group.barrier()


def fail_on(rank: int) -> int:
    if own_rank() == rank:
        raise ValueError("on purpose")
    return own_rank()


def fail_before_a_barrier(rank: int) -> None:
    fail_on(rank)
    wait_for_all()


def hang_on(rank: int) -> None:
    if own_rank() == rank:
        print("about to wait")
        signal.pause()
    wait_for_all()


def kill_rank(rank: int) -> None:
    if own_rank() == rank:
        print("about to die")
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_all()


def change_all_there_is(folder: str) -> None:
    os.environ["LUCID_TEST"] = "changed"
    os.chdir(folder)
    os.umask(0o077)
    sys.argv = ["changed"]
    sys.excepthook = threading.excepthook = print
    sys.stdout.close()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    signal.alarm(3600)
    threadpool_limits(limits=3)
    threads.limit(3)
    lucid.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    warnings.simplefilter("error")


def state_of_the_process() -> list[object]:
    return [
        sorted(os.environ.items()),
        os.getcwd(),
        os.umask(os.umask(0)) or sys.argv,
        [sys.excepthook is sys.__excepthook__, threading.excepthook is threading.__excepthook__],
        [str(signal.getsignal(number)) for number in signal.valid_signals()],
        signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        signal.alarm(0),
        [library["num_threads"] for library in threadpool_info()],
        threads.count(),
        lucid.random.state(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
        [str(each) for each in warnings.filters],
    ]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_a_job_has_a_world_of_its_ranks_alone(rank_pool, ranks):
    results = rank_pool.run(ranks, sizes)
    assert [result.value for result in results] == [(ranks, ranks, str(ranks))] * ranks


def test_what_a_rank_prints_is_its_own(rank_pool):
    for word in ("first", "second"):
        for result in rank_pool.run(2, print_everywhere, word):
            lines = result.output.splitlines()
            assert sorted(lines) == sorted(
                f"{word} {source}" for source in ("from Python", "as an error", "from a library", "from a child")
            )


def test_a_job_has_the_environment_and_the_folder_of_its_test(rank_pool, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUCID_TEST", "given")
    (before,) = rank_pool.run(1, state_of_the_process)
    assert ("LUCID_TEST", "given") in before.value[0]
    assert Path(before.value[1]) == tmp_path
    monkeypatch.delenv("LUCID_TEST")
    (after,) = rank_pool.run(1, state_of_the_process)
    assert "LUCID_TEST" not in dict(after.value[0])


def test_what_a_job_changes_of_its_process_is_put_back(rank_pool, tmp_path):
    before = [result.value for result in rank_pool.run(2, state_of_the_process)]
    rank_pool.run(2, change_all_there_is, str(tmp_path))
    after = rank_pool.run(2, state_of_the_process)
    assert [result.value for result in after] == before
    assert [result.output for result in after] == ["", ""]


def test_a_job_that_raises_says_where_and_what_and_the_next_goes_on(rank_pool):
    (pid,) = (result.value for result in rank_pool.run(1, os.getpid))
    with pytest.raises(JobError, match=r"rank 1: Traceback(.|\n)*ValueError: on purpose") as caught:
        rank_pool.run(3, fail_on, 1)
    assert {rank: failure.kind for rank, failure in caught.value.failures.items()} == {1: "ValueError"}
    assert rank_pool.run(1, os.getpid)[0].value == pid


def test_what_cannot_be_sent_back_is_a_failure_of_the_job(rank_pool):
    with pytest.raises(JobError, match="pickle"):
        rank_pool.run(1, threading.Lock)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (hang_on, r"rank 0 and 1 not done after 5 s(.|\n)*about to wait(.|\n)*in hang_on"),
        (
            fail_before_a_barrier,
            r"rank 0 not done .* another has failed(.|\n)*on purpose(.|\n)*in fail_before",
        ),
        (kill_rank, r"rank . has ended in the job(.|\n)*about to die"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_job_that_hangs_or_kills_ends_the_pool_with_what_is_known_and_the_next_starts_another(
    rank_pool, function, expected
):
    with pytest.raises(PoolError, match=expected):
        rank_pool.run(2, function, 1, seconds=5 if function is hang_on else 30)
    assert [result.value for result in rank_pool.run(3, fail_on, 9)] == [0, 1, 2]
