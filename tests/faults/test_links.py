"""A run over two hosts, which are network namespaces here: a short cut of the link changes nothing, a long one ends it.

They need root, and a kernel that permits namespaces.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from launching import ONE_THREAD, TRAIN

from lucid.errors import ExitCode

pytestmark = pytest.mark.long

SECONDS = 60
LINK = "link0"

# Stands for ssh: runs the command in the other namespace, under a name of its own. With the same one, or the same
# shared memory, MPI would take both for one host.
ENTER = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
shift
exec ip netns exec {namespace} unshare --uts --ipc bash -c "hostname far; exec $*"
"""


class Hosts:
    """Two network namespaces, joined by a link; the first is where the run is started, the second is called "far"."""

    def __init__(self, folder):
        self.namespaces = [f"lucid-{os.getpid()}-{host}" for host in ("near", "far")]
        self.enter = folder / "enter"

    def make(self):
        """Make both, or raise `OSError` or `CalledProcessError` where that is not permitted."""
        for namespace in self.namespaces:
            ip("netns", "add", namespace)
            ip("netns", "exec", namespace, "unshare", "--uts", "--ipc", "true")

    def join(self):
        near, far = self.namespaces
        ip("link", "add", LINK, "netns", near, "type", "veth", "peer", "name", LINK, "netns", far)
        for number, namespace in enumerate(self.namespaces, start=1):
            ip("-n", namespace, "link", "set", "lo", "up")
            ip("-n", namespace, "addr", "add", f"10.77.0.{number}/24", "dev", LINK)
            ip("-n", namespace, "link", "set", LINK, "up")
        self.enter.write_text(ENTER.format(namespace=far))
        self.enter.chmod(0o755)
        for namespace in self.namespaces:
            until(lambda namespace=namespace: " UP " in ip("-n", namespace, "-br", "link", "show", LINK))

    def remove(self):
        for namespace in self.namespaces:
            for pid in self.processes(namespace):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)

    def processes(self, namespace):
        found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def set_link(self, state):
        ip("-n", self.namespaces[0], "link", "set", LINK, state)

    def bytes_sent(self):
        """How much has gone over the link, from the near end."""
        counter = f"/sys/class/net/{LINK}/statistics/tx_bytes"
        return int(subprocess.check_output(["ip", "netns", "exec", self.namespaces[0], "cat", counter]))


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


def until(condition):
    """Wait for what comes about by itself, soon."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def hosts(tmp_path):
    hosts = Hosts(tmp_path)
    try:
        try:
            hosts.make()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces are not permitted here: {getattr(error, 'stderr', None) or error}")
        hosts.join()
        yield hosts
    finally:
        hosts.remove()


@pytest.fixture
def start(hosts, mpiexec, run_file, tmp_path):
    """A function that starts the run on both hosts and returns the process once it has taken ten steps."""

    def begin(*overrides):
        inside = ["ip", "netns", "exec", hosts.namespaces[0]]
        addresses = ["-localhost", "10.77.0.1", "-hosts", "10.77.0.1,10.77.0.2"]
        launch = [mpiexec, "-launcher", "ssh", "-launcher-exec", str(hosts.enter), *addresses, "-ppn", "1", "-n", "2"]
        process = subprocess.Popen(
            [*inside, *launch, sys.executable, *TRAIN, str(run_file), f"run_folder={tmp_path / 'cut'}", *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | ONE_THREAD | {"UCX_NET_DEVICES": LINK},
        )
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step 10/"):
                return process
        pytest.fail("".join(lines))

    return begin


def test_a_link_that_is_cut_for_three_seconds_changes_nothing(hosts, start, train, losses, tmp_path):
    process = start("train.watchdog_seconds=30")
    hosts.set_link("down")
    time.sleep(3)
    assert max(losses(tmp_path / "cut")) < 50
    hosts.set_link("up")
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert hosts.bytes_sent() > 50 * 4 * 9034  # the gradients went over the link
    assert losses(tmp_path / "cut") == train(2, "undisturbed")


def test_a_link_that_stays_cut_ends_the_ranks_on_both_sides(hosts, start):
    process = start("train.watchdog_seconds=3")
    hosts.set_link("down")
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == ExitCode.HUNG, output
    assert "rank 1 on far does not answer (stopped, gone, or cut off from this one)" in output
    assert output.count("ranks wait in vain in all_reduce") == 1
    for namespace in hosts.namespaces:
        until(lambda namespace=namespace: not hosts.processes(namespace))
