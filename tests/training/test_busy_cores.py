"""A rank whose threads wait for cores says so, once; other ranks do not."""

import os
import subprocess
import sys

import pytest

from lucid.training.log.busy_cores import core_times, judge

SECOND = 10**9


@pytest.mark.parametrize(
    ("threads", "running", "waiting", "remark"),
    [
        (2, 1.0, 3.0, "the 2 threads of a rank wait 75% of their time for cores"),
        (8, 1.0, 0.7, "the 8 threads of a rank wait 41% of their time for cores"),
        (2, 3.0, 0.3, ""),
        (1, 1.0, 3.0, ""),  # it cannot have fewer
        (2, 0.1, 0.8, None),
    ],
)
def test_threads_that_mostly_wait_are_noted(threads, running, waiting, remark):
    before = {"1": (SECOND, 5 * SECOND), "2": (0, 0), "ended": (0, 0)}
    now = {"1": (SECOND + int(running * SECOND), 5 * SECOND), "2": (0, int(waiting * SECOND)), "new": (0, 9 * SECOND)}
    said = judge(threads, before, now)
    assert said == remark if not remark else remark in said


def test_a_system_that_does_not_count_is_no_error(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "schedstat").write_text("unknown\n")
    assert core_times(tmp_path) == {}


FOUR_THREADS_ON_A_CORE = """
import hashlib, os, threading
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from lucid.kernels import threads
from lucid.training.log.busy_cores import BusyCores
threads.limit(4)
data, done = bytes(1 << 22), threading.Barrier(5)

def work():
    done.wait()
    for _ in range(60):
        hashlib.sha256(data).digest()
    done.wait()
    done.wait()  # a thread that has ended has no times any more

for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
cores = BusyCores()
done.wait()
done.wait()
print(cores.remark())
print(cores.remark())
"""


def test_four_threads_on_one_core_are_noted_once():
    if not core_times():
        pytest.skip("this system does not count the time that threads wait for cores")
    finished = subprocess.run(
        [sys.executable, "-c", FOUR_THREADS_ON_A_CORE],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    first, second = finished.stdout.split("\n")[:2]
    assert first.startswith("warning: the 4 threads of a rank wait ")
    assert second == ""
