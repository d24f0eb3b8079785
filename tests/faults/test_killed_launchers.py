"""If a process of the launcher is killed, the launcher and all ranks end. test_restarts.py has whole runs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hosts import LINK, until
from launching import FEW_CORES, descendants

from lucid.launch.processes import Process

SECONDS = 60

WAIT = "print('ready', flush=True)\nwhile True: signal.pause()"
# A rank with a parent, which ends it even before it has found the others.
WITH_PARENT = (sys.executable, "-m", "lucid.launch.rank_parent", "-c", f"import signal\n{WAIT}")
# A rank that mpiexec starts itself, as any program that uses lucid.
BARE = (sys.executable, "-c", f"import signal\nfrom lucid.distributed import connect\nconnect()\n{WAIT}")
# The same below a user's script.
WRAPPED = ("sh", "-c", '"$@"; exit $?', "sh", *BARE)


@pytest.fixture
def start():
    """A function that starts two ranks with this command, and returns mpiexec once both are ready."""
    started = []

    def run(*command, **variables):
        process = subprocess.Popen(
            command,
            env=os.environ | FEW_CORES | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        started.append((process, []))
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        started[-1][1].extend(descendants(process.pid))
        return process

    yield run
    for process, below in started:
        for number in (process.pid, *below):
            if Process.read(number):
                os.kill(number, signal.SIGKILL)
        process.communicate()


def find(processes, program):
    """Return the processes that run `program`."""
    return [number for number in processes if program in Path(f"/proc/{number}/cmdline").read_text().split("\0")[0]]


def ends_with_all(mpiexec, processes):
    code = mpiexec.wait(SECONDS)
    until(lambda: not any(map(Process.read, processes)), SECONDS)
    return code


@pytest.mark.parametrize(
    ("ranks", "program"),
    [
        pytest.param(WITH_PARENT, "hydra_pmi_proxy", id="with a parent"),
        pytest.param(BARE, "hydra_pmi_proxy", id="bare"),
        pytest.param(WRAPPED, "sh", id="below a script"),
    ],
)
def test_ranks_and_mpiexec_end_when_a_process_between_them_is_killed(start, mpiexec, ranks, program):
    process = start(mpiexec, "-n", "2", *ranks)
    processes = descendants(process.pid)
    os.kill(find(processes, program)[0], signal.SIGKILL)
    assert ends_with_all(process, processes) != 0


@pytest.mark.parametrize("place", [0, 1])
def test_ranks_of_both_hosts_end_when_the_proxy_of_one_is_killed(hosts, start, mpiexec, place):
    process = start(*hosts.mpiexec(mpiexec, 1), *WITH_PARENT, UCX_NET_DEVICES=LINK)
    processes = descendants(process.pid)
    there = hosts.processes(hosts.namespaces[place])
    (proxy,) = (number for number in find(processes, "hydra_pmi_proxy") if number in there)
    os.kill(proxy, signal.SIGKILL)
    assert ends_with_all(process, processes) != 0


def test_a_killed_mpiexec_leaves_nothing_behind(start, mpiexec):
    process = start(mpiexec, "-n", "2", *WITH_PARENT)
    processes = descendants(process.pid)
    process.kill()
    ends_with_all(process, processes)


def test_a_connection_of_ssh_that_others_share_outlives_an_attempt():
    """The user's other commands would lose it."""
    program = """
import subprocess
from lucid.launch.processes import end_children

shared = subprocess.Popen(["ssh: /home/me/.ssh/node2 [mux]", "600"], executable="sleep")
other = subprocess.Popen(["sleep", "600"])
end_children()
print(shared.poll(), Path(f"/proc/{other.pid}").exists())
shared.kill()
"""
    finished = subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path\n{program}"], stdout=subprocess.PIPE, text=True, check=True
    )
    assert finished.stdout == "None False\n"


def test_a_process_differs_from_a_later_one_with_its_number():
    this = Process.read(os.getpid())
    assert this.parent == os.getppid()
    assert not this.has_ended
    assert Process(this.number, this.parent, this.start - 1).has_ended
    child = subprocess.Popen([sys.executable, "-c", ""])
    until(lambda: Process.read(child.pid) is None)  # it is a zombie
    child.wait()
